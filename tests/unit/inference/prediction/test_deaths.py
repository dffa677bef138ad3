"""Proves that rows which kill the process are found: tried again as they are, then one by one, then given up."""

from finetune.inference.prediction.deaths import Whereabouts, forget_whereabouts, note_deaths
from finetune.inference.prediction.parts import Parts


def make(tmp_path, *chunks):
    parts = Parts(tmp_path / "out.jsonl")
    for window, _ in chunks:
        parts.window(window).mkdir(parents=True, exist_ok=True)
    return parts


def test_two_deaths_at_a_chunk_and_one_at_a_row(tmp_path):
    parts = make(tmp_path, (3, 1))
    for death in range(2):
        forget_whereabouts(parts)
        Whereabouts(parts, 5).note([(3, 1)])  # not closed: the process dies
        lines, gained = note_deaths(parts, [5])
        assert not gained
        assert lines == (
            [] if death == 0 else ["ranks died twice at chunk 1 of window 3: its rows are answered one by one"]
        )
        assert (parts.died((3, 1)).exists(), parts.failed((3, 1)).exists()) == (True, death == 1)
    Whereabouts(parts, 5).note([(3, 1)], example=7, answered=2)
    (line,), gained = note_deaths(parts, [5])
    assert gained and "given up" in line and parts.lost((3, 1)).read_text() == "7\n"


def test_who_did_not_die_is_not_blamed(tmp_path):
    parts = make(tmp_path, (0, 0), (0, 1), (0, 2))
    Whereabouts(parts, 0).note([(0, 0)])
    done = Whereabouts(parts, 1)
    done.note([(0, 1)])
    done.close()
    Whereabouts(parts, 2).note([(0, 2), (9, 0)])
    parts.answers((0, 2)).write_text("answered after all")
    assert note_deaths(parts, [1, 2, 3]) == ([], False)
    assert not list(parts.folder.glob("*/*.died"))
    forget_whereabouts(parts)
    assert not list(parts.folder.glob("at-*"))


def test_ranks_that_die_together_at_a_chunk_are_one_death(tmp_path):
    parts = make(tmp_path, (3, 1))
    for rank in (4, 5):
        Whereabouts(parts, rank).note([(3, 1)])
    assert note_deaths(parts, [4, 5]) == ([], False)
    assert parts.died((3, 1)).exists() and not parts.failed((3, 1)).exists()


def test_a_damaged_file_says_nothing(tmp_path):
    parts = make(tmp_path, (0, 0))
    for text in ("", "{", "[]", '{"chunks": [[1]]}', '{"chunks": 3}'):
        parts.at(0).write_text(text)
        assert note_deaths(parts, [0]) == ([], False), text
