"""Bodies of requests: those of long texts are the same as those of short ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job_runner_worker import json_body


def at_once(fields):
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")


TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)


@given(
    st.dictionaries(TEXTS, st.one_of(TEXTS, st.none(), st.integers(), st.booleans())),
    TEXTS,
    st.integers(1, 4),
)
def test_a_body_is_what_it_would_be_if_encoded_at_once(fields, text, times):
    fields["content"] = text * (times * 70_000 // max(len(text), 1))

    assert json_body.encode(fields) == at_once(fields)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 200_000])
@pytest.mark.parametrize("text", ["x", '"', "\\", "\n", "é", "\ud83d", "😀", "\x01"])
def test_a_text_of_any_length_comes_back(size, text):
    body = json_body.encode({"run": "/1/", "content": text * size, "n": None})

    expected = (text * size).replace("\ud83d", "?")
    assert json.loads(body) == {"run": "/1/", "content": expected, "n": None}
    assert body == at_once({"run": "/1/", "content": text * size, "n": None})
