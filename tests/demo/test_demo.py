"""The digits, the questions, and the whole demo in small."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: demo)")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: demo)")

from ivl3_jax.cli import demo, main
from ivl3_jax.demo import baseline, curriculum, digits, evaluation, tasks


def rng(*seed):
    return np.random.default_rng(seed)


def test_the_last_third_is_held_out():
    train, held_out = digits.load("train"), digits.load("held_out")
    assert (len(train), len(held_out)) == (1198, 599)
    assert not set(train.index) & set(held_out.index)
    assert train.pixels.min() == 0 and train.pixels.max() == 1


def test_lessons_show_training_digits_only(monkeypatch):
    drawn = []
    compose = tasks.compose
    monkeypatch.setattr(tasks, "compose", lambda *args, **kw: drawn.append(compose(*args, **kw)) or drawn[-1])
    for stage in curriculum.STAGES:
        for index in range(60):
            stage.sample(0, index)
    assert max(scan for picture in drawn for scan in picture.index) < digits.FIRST_HELD_OUT


def test_the_examination_shows_held_out_digits_only_and_each_once():
    asked = list(evaluation.questions())
    pictures = [picture for _, question in asked for picture in question.pictures]
    assert min(scan for picture in pictures for scan in picture.index) >= digits.FIRST_HELD_OUT
    single = [question.pictures[0].index[0] for part, question in asked if part == evaluation.PARTS[0].name]
    assert sorted(single) == list(range(1198, 1797))


def test_a_lesson_is_a_function_of_stage_seed_and_index():
    stage = curriculum.STAGES[-1]
    one, same = stage.sample(3, 7), stage.sample(3, 7)
    assert one.messages == same.messages
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in same.images]
    assert any(stage.sample(4, index).messages != stage.sample(3, index).messages for index in range(3))


def test_pictures_vary_in_size_and_shape():
    pictures = [digits.compose("train", [1, 2], rng(i)) for i in range(40)]
    ratios = [picture.image.width / picture.image.height for picture in pictures]
    assert min(ratios) < 1.1 and max(ratios) > 1.9
    assert max(picture.image.height for picture in pictures) > 2 * min(picture.image.height for picture in pictures)


def test_held_out_digits_keep_their_shape():
    """Without the warp, the ink of a digit brought back to 8 x 8 is the scan."""
    scan = digits.load("held_out").pixels[5]
    ink = np.zeros((48, 48), np.float32)
    digits._write(ink, digits._enlarged("held_out")[5], (4.0, 4.0), (40.0, 40.0), rng(0), warp=False)
    back = ink[4:44, 4:44].reshape(8, 5, 8, 5).mean((1, 3))
    assert np.corrcoef(back.ravel(), scan.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("task", tasks.PHRASINGS)
def test_every_phrasing_of_a_task_is_asked(task):
    asked = {tasks.ask(task, tasks.draw_pictures(task, "train", 1, rng(i)), rng(i, 1)).text for i in range(60)}
    assert asked == set(tasks.PHRASINGS[task])


def test_answers_are_true():
    for i in range(30):
        pictures = tasks.draw_pictures("add", "train", 3, rng(i))
        numbers, total = tasks.ask("add", pictures, rng(i)).answer.split("=")
        assert sum(map(int, numbers.split("+"))) == int(total) == sum(pictures[0].digits)
        pair = tasks.draw_pictures("larger", "train", 2, rng(i))
        first, second = (int(picture.text) for picture in pair)
        assert tasks.ask("larger", pair, rng(i)).answer.endswith("first" if first > second else "second")
        assert first != second
        pair = tasks.draw_pictures("same", "train", 1, rng(i))
        assert tasks.ask("same", pair, rng(i)).answer.endswith("yes" if pair[0].text == pair[1].text else "no")


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("37", "37", True),
        ("37", " 37.", True),
        ("37", "73", False),
        ("07", "7", False),
        ("3+7=10", "3+7=10", True),
        ("3+7=10", "4+6=10", True),
        ("3+7=10", "10", True),
        ("3+7=10", "3+7=11", False),
        ("12 and 9: the first", "12 and 8: the first", True),
        ("12 and 9: the first", "12 and 9: the second", False),
        ("4 and 4: yes", "", False),
    ],
)
def test_only_the_result_counts(answer, reply, right):
    assert tasks.Question("any", "?", answer, ()).right(reply) is right


def test_the_baseline_is_as_good_as_known():
    right = baseline.predictions() == digits.load("held_out").labels
    assert 0.955 < right.mean() < 0.97


def test_the_baseline_answers_from_its_own_digits():
    wrong = int(np.flatnonzero(baseline.predictions() != digits.load("held_out").labels)[0])
    right = int(np.flatnonzero(baseline.predictions() == digits.load("held_out").labels)[0])
    for member, expected in ((wrong, False), (right, True)):
        question = tasks.ask("read", (digits.compose("held_out", [member], rng(0)),), rng(0))
        assert baseline.answers_right(question) is expected


def test_stages_share_the_steps_out():
    assert [first for first, _ in curriculum.first_steps(1000)][0] == 1
    assert curriculum.STAGES[-1].until == 1.0


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "run"
    argv = f"--output {output} --steps 3 --examination 0.01 --vision.layers 1 --decoder.layers 1".split()
    with pytest.MonkeyPatch.context() as patch:
        # A setting of the whole process, which other tests share.
        patch.setattr(demo, "keep_freed_memory", lambda: None)
        assert main.main(["demo", *argv]) == 0
    return output


@pytest.mark.slow
def test_the_whole_demo_in_small(small_run):
    output = small_run
    facts = json.loads((output / "demo.json").read_text())
    assert [score["part"] for score in facts["scores"]] == [part.name for part in evaluation.PARTS]
    assert len(facts["loss"]) == 3
    for name in ("curve.png", "page.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    page = (output / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=(?!["']?data:)""", page), "the page must need no other file"
    picture = next((output / "pictures").iterdir())
    assert (
        main.main(["chat", str(output / "checkpoint"), str(picture), "Read the number.", "--max-new-tokens", "3"]) == 0
    )


@pytest.mark.slow
def test_an_earlier_demo_is_replaced_and_nothing_else(small_run, tmp_path):
    from ivl3_jax.demo.run import make_room

    output = small_run
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not an earlier demo"):
        make_room(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    make_room(output)
    assert [file.name for file in output.iterdir()] == ["demo.json"]
