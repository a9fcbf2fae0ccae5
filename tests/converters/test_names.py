import pytest

from pivotune.converters.errors import ConvertError
from pivotune.converters.names import MAX_BYTES, distinct_stems, safe_stem


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("<cat>", "cat"),
        ("ema yasuhara", "ema yasuhara"),
        ("_mine_", "_mine_"),
        ("../../etc/passwd", "etc_passwd"),
        ("/etc/passwd", "etc_passwd"),
        ("C:\\windows\\x", "C__windows_x"),
        ("a\nb\x00c\u202e", "a_b_c"),
        ("con", "con_"),
        ("NUL.txt", "NUL_.txt"),
        ("com1", "com1_"),
        (" cat. ", "cat"),
        ("-rf", "rf"),
        ("e\u0301", "\xe9"),
        ("猫", "猫"),
        ("a.b", "a.b"),
    ],
)
def test_a_hostile_name_gives_a_plain_file_name(name, stem):
    assert safe_stem(name) == stem


@pytest.mark.parametrize("name", ["", "  ", "***", "..", "/", "\0", "<>", "___", "\ud800"])
def test_a_name_of_which_nothing_is_left_is_refused(name):
    with pytest.raises(ConvertError, match="a name with letters"):
        safe_stem(name)


@pytest.mark.parametrize("name", ["x" * 10_000, "猫" * 10_000])
def test_a_long_name_is_cut(name):
    assert MAX_BYTES - 3 < len(safe_stem(name).encode()) <= MAX_BYTES


def test_no_two_embeddings_share_a_file():
    stems = distinct_stems(["<cat>", "cat", "CAT", "[cat]", "cat_2"], r"[\w]")
    assert list(stems.values()) == ["cat", "cat_2", "CAT_3", "cat_4", "cat_2_2"]


def test_no_embedding_shares_the_second_file_of_another():
    stems = distinct_stems(["cat", "cat_2"], suffixes=("", "_2"))
    assert stems["cat_2"] not in ("cat", "cat_2")


def test_the_same_embedding_twice_is_refused():
    with pytest.raises(ConvertError, match="two embeddings are called 'cat'"):
        distinct_stems(["cat", "cat"])


def test_an_embedding_that_a_program_reads_as_syntax_is_changed():
    assert distinct_stems(["AND", "a (b)"], r"[\w ]", ["AND"]) == {"AND": "AND_", "a (b)": "a _b"}
