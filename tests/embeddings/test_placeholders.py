"""Placeholders are found as complete units, longest first, in one pass, in any case."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotune.pipeline.embeddings.placeholders import Replacer, replace, spelling

CAT = {"cat": "DOG"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "DOG"),
        ("a cat.", "a DOG."),
        ("category", "category"),
        ("concat", "concat"),
        ("cats", "cats"),
        ("cat2 2cat", "cat2 2cat"),
        ("my_cat _cat cat_", "my_cat _cat cat_"),
        ('cat\'s (cat) cat-like "cat"', 'DOG\'s (DOG) DOG-like "DOG"'),
        ("cat cat cat", "DOG DOG DOG"),
        ("cat,cat/cat", "DOG,DOG/DOG"),
        ("CAT Cat cAt", "DOG DOG DOG"),
        ("catégorie écat", "catégorie écat"),
        ("cate\u0301 cat\u0301", "cate\u0301 cat\u0301"),
        ("кот cat кот", "кот DOG кот"),
        ("котcat", "котcat"),
        ("", ""),
        ("   ", "   "),
        ("cat\n\tcat", "DOG\n\tDOG"),
    ],
)
def test_only_complete_placeholders_are_replaced(text: str, expected: str) -> None:
    assert replace(text, CAT) == expected


@pytest.mark.parametrize("text", ["x<emblem>y", "<emblem>", "(<emblem>)", "<emblem><emblem>", "<EMBLEM>, <<emblem>>"])
def test_a_placeholder_in_brackets_is_found_next_to_anything(text: str) -> None:
    assert "emblem" not in replace(text, {"<emblem>": "!"}).lower()


def test_a_placeholder_in_brackets_is_not_found_without_them() -> None:
    assert replace("emblem <emblems> < emblem >", {"<emblem>": "!"}) == "emblem <emblems> < emblem >"


@pytest.mark.parametrize(
    "text", ["ema yasuhara", "Ema  Yasuhara", "ema\nyasuhara", "ema \t yasuhara", "ema\u00a0yasuhara"]
)
def test_a_placeholder_with_a_space_matches_any_whitespace(text: str) -> None:
    assert replace(f"({text})", {"ema yasuhara": "E"}) == "(E)"


def test_a_placeholder_with_a_space_needs_whitespace() -> None:
    assert (
        replace("emayasuhara ema-yasuhara ema yasuharas", {"ema yasuhara": "E"})
        == "emayasuhara ema-yasuhara ema yasuharas"
    )


def test_the_longest_placeholder_wins_in_any_order() -> None:
    embeddings = ["ema", "ema yasuhara", "ema yasuhara red"]
    for order in (embeddings, embeddings[::-1]):
        texts = {embedding: f"[{len(embedding)}]" for embedding in order}
        assert replace("ema yasuhara red ema yasuhara ema red", texts) == "[16] [12] [3] red"


@pytest.mark.parametrize("embeddings", [["TOK", "TOK2"], ["TOK2", "TOK"]])
def test_a_placeholder_that_is_a_prefix_of_another(embeddings: list[str]) -> None:
    texts = {"TOK": "<s0><s1>", "TOK2": "<s2><s3>"}
    assert (
        replace("a TOK2 and TOK", {embedding: texts[embedding] for embedding in embeddings})
        == "a <s2><s3> and <s0><s1>"
    )


def test_a_replacement_is_not_searched_again() -> None:
    assert replace("a b", {"a": "b", "b": "a"}) == "b a"
    assert replace("cat", {"cat": "cat cat"}) == "cat cat"


def test_a_placeholder_without_a_replacement_is_unchanged() -> None:
    assert Replacer(["ema", "ema yasuhara"]).replace("ema yasuhara, ema", {"ema": "E"}) == "ema yasuhara, E"


def test_positions_and_counts() -> None:
    replacer = Replacer(["<emblem>", "cat"])
    text = "Cat on <Emblem>, cat"
    assert [(start, end, embedding, text[start:end]) for start, end, embedding in replacer.find(text)] == [
        (0, 3, "cat", "Cat"),
        (7, 15, "<emblem>", "<Emblem>"),
        (17, 20, "cat", "cat"),
    ]
    assert replacer.count(text) == {"cat": 2, "<emblem>": 1}
    assert replacer.embeddings_in(text) == ["cat", "<emblem>"]


@pytest.mark.parametrize(
    ("embedding", "text"), [("café", "CAFE\u0301"), ("cafe\u0301", "Café"), ("Ω", "ω"), ("İx", "İX")]
)
def test_accents_and_case_match_in_any_spelling(embedding: str, text: str) -> None:
    assert replace(f"a {text} b", {embedding: "!"}) == "a ! b"


@pytest.mark.parametrize(
    ("embedding", "text"), [("👩", "👩\u200d🚀"), ("क", "कि"), ("❤", "❤\ufe0f"), ("می", "می\u200cخواهم")]
)
def test_part_of_a_joined_character_is_no_placeholder(embedding: str, text: str) -> None:
    assert replace(text, {embedding: "!"}) == text


def test_a_joined_character_is_a_placeholder() -> None:
    assert replace("a 👩\u200d🚀, ❤\ufe0fcat", {"👩\u200d🚀": "!", "cat": "DOG"}) == "a !, ❤\ufe0fDOG"


def test_regular_expressions_are_plain_text() -> None:
    assert replace("a.b axb a+ (x) \\1", {"a.b": "1", "a+": "2", "(x)": r"\1"}) == r"1 axb 2 \1 \1"


@pytest.mark.parametrize("embeddings", [["cat", "CAT"], ["a  b", "a b"], ["café", "cafe\u0301"]])
def test_two_spellings_of_one_placeholder_are_an_error(embeddings: list[str]) -> None:
    with pytest.raises(ValueError, match="two placeholders are the same in text"):
        Replacer(embeddings)


@pytest.mark.parametrize("embedding", ["", "  ", "\n"])
def test_a_blank_placeholder_is_an_error(embedding: str) -> None:
    with pytest.raises(ValueError, match="must not be blank"):
        Replacer([embedding])


def test_the_time_for_a_text_does_not_depend_on_the_placeholders() -> None:
    text = "a photo of word5 and nothing else " * 10

    def calls(replacer: Replacer) -> int:
        count = 0

        def called(frame: object, event: str, about: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        replacer.find(text)
        sys.setprofile(called)
        try:
            replacer.find(text)
        finally:
            sys.setprofile(None)
        return count

    few, many = Replacer(["word5"]), Replacer([f"embedding{number}" for number in range(20_000)])
    assert calls(many) < 3 * calls(few)


STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine too
TEXTS = st.text(st.sampled_from(list("abAB1_<>-.,' \n\u0301\u200déÉ猫İ")), max_size=40)
EMBEDDINGS = st.lists(st.text(st.sampled_from(list("abA1_<>- \u0301é猫")), min_size=1, max_size=6), max_size=6)


def distinct(embeddings: list[str]) -> list[str]:
    return list({spelling(embedding): embedding for embedding in embeddings if embedding.strip()}.values())


@STEADY
@given(TEXTS, EMBEDDINGS)
def test_matches_are_in_order_and_spell_their_placeholder(text: str, embeddings: list[str]) -> None:
    end = 0
    for found in Replacer(distinct(embeddings)).find(text):
        assert end <= found.start < found.end <= len(text)
        assert spelling(text[found.start : found.end]) == spelling(found.embedding)
        end = found.end


@STEADY
@given(TEXTS, EMBEDDINGS)
def test_replacing_placeholders_by_themselves_changes_only_spelling(text: str, embeddings: list[str]) -> None:
    replacer = Replacer(distinct(embeddings))
    rest = "".join(part for part in pieces(replacer, text))
    assert rest == replacer.replace(text, dict.fromkeys(replacer.embeddings, ""))
    assert replacer.replace(text, {}) == text


def pieces(replacer: Replacer, text: str) -> list[str]:
    """The text between the placeholders."""
    ends = [0, *(found.end for found in replacer.find(text))]
    starts = [*(found.start for found in replacer.find(text)), len(text)]
    return [text[end:start] for end, start in zip(ends, starts, strict=True)]


@STEADY
@given(TEXTS, EMBEDDINGS, st.permutations(range(6)))
def test_the_order_of_the_placeholders_does_not_matter(text: str, embeddings: list[str], order: list[int]) -> None:
    one = distinct(embeddings)
    two = [one[index] for index in order if index < len(one)]
    assert Replacer(one).find(text) == Replacer(two).find(text)


@STEADY
@given(st.lists(st.sampled_from(["cat", "dog", "<x>", "ema yasuhara"]), min_size=1, max_size=8))
def test_placeholders_between_spaces_are_all_found(embeddings: list[str]) -> None:
    found = Replacer(["cat", "dog", "<x>", "ema yasuhara"]).find(" and ".join(embeddings))
    assert [one.embedding for one in found] == embeddings


def test_a_long_placeholder_is_not_found_in_the_short_end_of_a_text():
    assert [(found.start, found.end) for found in Replacer(["cat", "cat and dog"]).find("a cat")] == [(2, 5)]


def test_ten_thousand_placeholders_with_one_prefix_are_looked_up():
    replacer = Replacer([f"<w{number}>" for number in range(10_000)])
    looked = []
    spelled = replacer._spelled

    class Counted(dict):
        def __contains__(self, units):
            looked.append(units)
            return units in spelled

    replacer._spelled = Counted(spelled)
    assert replacer.embeddings_in("a <w9999> and a < b") == ["<w9999>"]
    assert len(looked) <= 2
