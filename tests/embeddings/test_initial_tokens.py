"""Initial text is truncated or padded per tokenizer."""

import pytest

from pivotune.pipeline.embeddings.initial import TokenizedTexts, tokenize_initial
from pivotune.recipes.micro.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def test_a_text_of_the_right_length_is_unchanged(tokenizer):
    found = tokenize_initial(TokenizedTexts(tokenizer), "red ring", 2, "*")
    assert (found.ids, found.kept, found.cut, found.padded) == (ids(tokenizer, "red ring"), 2, (), 0)


def test_a_long_text_is_truncated(tokenizer):
    found = tokenize_initial(TokenizedTexts(tokenizer), "red ring", 1, "*")
    assert (found.ids, found.kept, found.cut) == (ids(tokenizer, "red"), 1, ("ring</w>",))


def test_a_short_text_is_padded_with_the_first_token_of_the_padding(tokenizer):
    found = tokenize_initial(TokenizedTexts(tokenizer), "ring", 3, "*")
    star = ids(tokenizer, "*")[0]
    assert (found.ids, found.kept, found.padded) == ((*ids(tokenizer, "ring"), star, star), 1, 2)


@pytest.mark.parametrize(("text", "count"), [("red ring", 2), ("ring", 1), ("", 1), ("  ", 1)])
def test_without_a_count_the_text_gives_the_number_of_tokens(tokenizer, text, count):
    assert len(tokenize_initial(TokenizedTexts(tokenizer), text, None, "*").ids) == count


def test_padding_without_a_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no token"):
        tokenize_initial(TokenizedTexts(tokenizer), "ring", 3, "")


def test_many_texts_in_one_call_match_single_calls(tokenizer):
    texts = ["red ring", "ring", "", "  ", "a photo of a salmon heart", "red ring"]
    many = TokenizedTexts(tokenizer, [*texts, "*"])
    asked = []
    many.tokenizer = lambda *args, **options: asked.append(args)
    many.tokenizer.convert_ids_to_tokens = tokenizer.convert_ids_to_tokens
    for text in texts:
        for tokens in (None, 1, 3):
            alone = tokenize_initial(TokenizedTexts(tokenizer), text, tokens, "*")
            assert tokenize_initial(many, text, tokens, "*") == alone
            assert alone.pieces == tuple(tokenizer.convert_ids_to_tokens(list(alone.ids)))
    assert asked == []
