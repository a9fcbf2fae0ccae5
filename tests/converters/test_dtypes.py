import math
import struct

import numpy
import pytest

from pivotune.converters.dtypes import convert, values
from pivotune.converters.errors import ConvertError
from pivotune.converters.tensor import RawTensor, is_finite


def tensor(numbers, dtype="F32"):
    code = {"F32": "f", "F64": "d"}[dtype]
    return RawTensor(dtype, (len(numbers),), struct.pack(f"<{len(numbers)}{code}", *numbers))


@pytest.fixture
def numbers():
    bits = numpy.random.default_rng(7).integers(0, 1 << 32, 20_000, dtype=numpy.uint32)
    edges = [0, 1, 0x80000000, 0x7F800000, 0x33000000, 0x33000001, 0x477FEFFF, 0x387FE000, 0x3F808000, 0x3F818000]
    found = numpy.concatenate([bits, numpy.array(edges, numpy.uint32)]).view(numpy.float32)
    return found[~numpy.isnan(found)]


def test_float16_is_rounded_as_numpy_rounds_it(numbers):
    fitting = numbers[(numpy.abs(numbers) < 65520) | numpy.isinf(numbers)]
    result, vanished = convert(RawTensor("F32", fitting.shape, fitting.tobytes()), "F16")
    expected = fitting.astype(numpy.float16)
    assert bytes(result.data) == expected.tobytes()
    assert vanished == int(((expected == 0) & (fitting != 0)).sum()) > 0


def test_bfloat16_is_the_nearest_and_ties_go_to_even(numbers):
    fitting = numbers[numpy.abs(numbers) < 3.38e38]
    result, _ = convert(RawTensor("F32", fitting.shape, fitting.tobytes()), "BF16")
    wide = fitting.astype(numpy.float64)
    found = numpy.array(values(result))
    halves = numpy.frombuffer(result.data, numpy.uint16)
    for other in (halves - 1, halves + 1):
        with numpy.errstate(invalid="ignore"):
            neighbour = (other.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)
        nearer = numpy.abs(neighbour - wide) < numpy.abs(found - wide)
        tie = (numpy.abs(neighbour - wide) == numpy.abs(found - wide)) & (found != wide) & (neighbour != found)
        assert not nearer.any()
        assert not (halves[tie] & 1).any()


def test_binary64_is_not_rounded_twice():
    just_above_a_tie = 1 + 2**-8 + 2**-40  # binary32 would make it the tie 1 + 2^-8, and that would go down to 1
    assert list(values(convert(tensor([just_above_a_tie], "F64"), "BF16")[0])) == [1 + 2**-7]
    assert list(values(convert(tensor([1 + 2**-8], "F64"), "BF16")[0])) == [1.0]


@pytest.mark.parametrize(("value", "dtype"), [(65520.0, "F16"), (-1e38, "F16"), (3.4e38, "BF16")])
def test_a_value_that_would_become_infinite_is_refused(value, dtype):
    with pytest.raises(ConvertError, match=f"cat: has values too large for {dtype}"):
        convert(tensor([0.0, value]), dtype, "cat")


def test_nan_and_infinity_stay_what_they_are():
    for dtype in ("F16", "BF16", "F64"):
        found = values(convert(tensor([math.nan, math.inf, -math.inf]), dtype)[0])
        assert math.isnan(found[0])
        assert found[1:] == type(found)([math.inf, -math.inf])


def test_the_same_type_keeps_its_bits_and_integers_are_refused():
    same = tensor([1.0])
    assert convert(same, "F32") == (same, 0)
    with pytest.raises(ConvertError, match="from I8 to F32"):
        convert(RawTensor("I8", (1,), b"1"), "F32")


@pytest.mark.parametrize(
    ("dtype", "code", "largest"), [("F64", "d", 3.4e38), ("F32", "f", 3.4e38), ("F16", "e", 65504.0)]
)
def test_values_that_are_not_finite_are_seen_wherever_they_are(dtype, code, largest):
    sound = [0.0, -0.0, 1.5, -largest, largest, 5e-8]

    def made(numbers):
        return RawTensor(dtype, (len(numbers),), struct.pack(f"<{len(numbers)}{code}", *numbers))

    assert is_finite(made(sound))
    assert is_finite(made([]))
    for bad in (math.nan, math.inf, -math.inf, *([3.41e38] if dtype == "F64" else [])):
        for place in range(len(sound) + 1):
            assert not is_finite(made([*sound[:place], bad, *sound[place:]]))


def test_values_that_are_not_finite_are_seen_in_bfloat16():
    assert is_finite(convert(tensor([1.0, -3e38]), "BF16")[0])
    assert not is_finite(convert(tensor([1.0, math.inf]), "BF16")[0])


@pytest.mark.parametrize(("dtype", "name"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")])
def test_eight_bits_are_read_as_torch_reads_them(dtype, name):
    torch = pytest.importorskip("torch")
    every = RawTensor(dtype, (256,), bytes(range(256)))
    expected = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name)).to(torch.float64).numpy()
    assert numpy.array_equal(values(every), expected, equal_nan=True)
    assert numpy.array_equal(numpy.signbit(values(every)), numpy.signbit(expected))
    for byte in range(256):
        assert is_finite(RawTensor(dtype, (1,), bytes([byte]))) == bool(numpy.isfinite(expected[byte])), byte
