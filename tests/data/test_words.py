import pyarrow as pa

from diva.data.words import distinct_words


def test_words_are_counted_once_whatever_their_case_and_punctuation():
    texts = [["What's it?", "WHAT is it - o'clock", "привет, мир"], ["", "It is a do-it-yourself."]]
    assert distinct_words(pa.chunked_array(texts, pa.string())) == 9
    assert distinct_words(pa.chunked_array([[]], pa.string())) == 0
