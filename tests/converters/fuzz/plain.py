"""Damage that knows nothing of formats: bytes flipped, moved, lost, or replaced by numbers that lie."""

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x2E, 0x7B, 0x22, 0x28)


def flip(rng, data):
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)


def replace(rng, data):
    data[rng.randrange(len(data))] = rng.choice(INTERESTING)


def number(rng, data):
    size = rng.choice((2, 4, 8))
    at = rng.randrange(len(data))
    value = rng.choice((0, 1, -1, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1, len(data), rng.getrandbits(8 * size)))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def cut(rng, data):
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 8, rng.randrange(1, len(data) + 1)))]


def end(rng, data):
    del data[rng.randrange(len(data)) :]


def double(rng, data):
    at = rng.randrange(len(data))
    part = data[at : at + rng.choice((1, 4, 64, 1000))]
    where = rng.randrange(len(data) + 1)
    data[where:where] = part * rng.choice((1, 2, 50))


def insert(rng, data):
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))


def append(rng, data):
    data += rng.choice((b"\0", b"PK\x05\x06" + bytes(18), b"}", b".", bytes(1000), rng.randbytes(50)))


def mutate(rng, data, times=None):
    """A few of these, most of them near the start, where formats keep what they say of themselves."""
    data = bytearray(data)
    head = data[: min(len(data), 512)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 8))):
        part = head if head and rng.random() < 0.6 else data
        if part:
            rng.choice((flip, flip, replace, number, cut, end, double, insert, append))(rng, part)
        if part is head:
            data = head + data[512:]
            head = data[: min(len(data), 512)]
    return bytes(data)


def splice(rng, data, other):
    """The start of one file and the end of another: polyglots."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
