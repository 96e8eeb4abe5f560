"""Ranking by few feeds: steadier than the pooled SQNR, and the same where nothing saturates."""

import numpy as np
import onnx.parser

from edgeinfer import Model
from edgeinfer.quantization.search.output_score import Scorer, output_sqnr_db

FEEDS = 6


def net(last: str) -> Model:
    return Model.load(
        onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 17]>
            net (float[1, 4] x) => (float[1, 4] y) {{ y = {last}(x) }}"""
        )
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def test_noise_on_logits_shows_where_the_softmax_hides_it() -> None:
    rng = np.random.default_rng(0)
    # All feeds but one are certain: the noise on their logits hardly moves a probability.
    logits = [np.array([[30.0, 0.0, 0.0, 0.0]]) for _ in range(FEEDS - 1)] + [np.array([[1.0, 1.1, 0, 0]])]
    noise = [rng.standard_normal((1, 4)) for _ in logits]
    # The first version has ten times the noise of the second, but by chance little in the one that shows it.
    worse = [
        [softmax(a + (0.5 * n if a[0, 0] > 2 else 0.001 * n))] for a, n in zip(logits, noise, strict=True)
    ]
    better = [[softmax(a + 0.05 * n)] for a, n in zip(logits, noise, strict=True)]
    reference = [[softmax(a)] for a in logits]
    scorer = Scorer(net("Softmax"), reference)
    assert scorer.score(worse).sqnr_db > scorer.score(better).sqnr_db
    assert scorer.score(better).rank_db > scorer.score(worse).rank_db + 10


def test_without_saturation_it_is_the_mean_of_the_decibels() -> None:
    rng = np.random.default_rng(1)
    reference = [[rng.standard_normal((1, 4)).astype(np.float32)] for _ in range(FEEDS)]
    other = [[(1.01 * outputs[0]).astype(np.float32)] for outputs in reference]
    score = Scorer(net("Relu"), reference).score(other)
    np.testing.assert_allclose([score.sqnr_db, score.rank_db], 40.0, atol=0.01)
    assert score.sqnr_db == output_sqnr_db(reference, other)


def test_equal_silent_and_broken_outputs() -> None:
    ones, zeros = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    scorer = Scorer(net("Relu"), [[ones], [zeros]])
    assert 30 < scorer.score([[ones], [zeros]]).rank_db < 100
    assert scorer.score([[ones], [np.full((1, 4), np.nan, np.float32)]]).rank_db == -np.inf
    assert np.isfinite(scorer.score([[zeros], [zeros]]).rank_db)


def test_a_sigmoid_at_the_end_is_undone_behind_a_reshape() -> None:
    model = Model.load(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            net (float[1, 4] x) => (float[4] y)
            <int64[1] shape = {4}> { s = Sigmoid(x) y = Reshape(s, shape) }"""
        )
    )
    logits = np.array([6.0, -6.0, 5.0, -5.0])
    sigmoid = [1 / (1 + np.exp(-value)) for value in (logits, 1.1 * logits)]
    score = Scorer(model, [[sigmoid[0].astype(np.float32)]]).score([[sigmoid[1].astype(np.float32)]])
    np.testing.assert_allclose(score.rank_db, 20.0, atol=0.01)
