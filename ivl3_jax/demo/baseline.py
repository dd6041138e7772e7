"""What a classical method makes of the same digits: a support-vector machine on single, centred scans."""

from functools import cache

import numpy as np
from sklearn.svm import SVC

from ivl3_jax.demo.digits import FIRST_HELD_OUT, load
from ivl3_jax.demo.tasks import Question, ask


@cache
def predictions() -> np.ndarray:
    """The labels that the SVM gives to the held-out scans, int [599], after learning from the training scans.

    Its settings are those of scikit-learn's own example for this set.
    """
    train, held_out = load("train"), load("held_out")
    machine = SVC(gamma=0.001).fit(train.pixels.reshape(len(train), -1) * 16, train.labels)
    return machine.predict(held_out.pixels.reshape(len(held_out), -1) * 16)


def answers_right(question: Question) -> bool:
    """Whether the SVM would answer a question about held-out digits, were it handed each scan cut out and centred."""
    seen = []
    for picture in question.pictures:
        digits = tuple(int(predictions()[index - FIRST_HELD_OUT]) for index in picture.index)
        seen.append(picture.__class__(picture.image, digits, picture.index))
    return question.right(ask(question.task, tuple(seen), np.random.default_rng(0)).answer)
