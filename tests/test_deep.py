"""DeepQuantizer: every supervision, loss, rule and ending of a training; the same bits again and again."""

import copy
import pickle
from functools import cache

import numpy as np
import pytest

import npquant as nq
from npquant import metrics, nn
from npquant.errors import DivergedError, InvalidInputError, NotFittedError, NotInvertibleError, NpquantWarning

DIGITS = nq.datasets.load_digits()
X, Y = DIGITS.X_train[:600], DIGITS.y_train[:600]
Q, YQ = DIGITS.X_test[:200], DIGITS.y_test[:200]


def make(**params):
    defaults = {"hidden": (32,), "d_out": 8, "quantizer": nq.ProductQuantizer(m=2, nbits=4), "epochs": 9, "lr": 1e-2,
                "batch_size": 64, "random_state": 0}
    return nq.DeepQuantizer(**{**defaults, **params})


def adc_map(model, labels=Y, query_labels=YQ):
    return metrics.mean_average_precision(model.scorer(Q).scores(model.encode(X)), query_labels, labels)


def same_model(a, b):
    assert a.network_.parameters.tobytes() == b.network_.parameters.tobytes()
    assert {name: v.tobytes() for name, v in a.network_.running.items()} == {
        name: v.tobytes() for name, v in b.network_.running.items()}
    assert a.quantizer_.codebooks_.tobytes() == b.quantizer_.codebooks_.tobytes()
    history = [[{k: v for k, v in figures.items() if k != "seconds"} for figures in m.history_] for m in (a, b)]
    assert history[0] == history[1]
    assert a.encode(Q).tobytes() == b.encode(Q).tobytes()


@pytest.mark.core
@pytest.mark.parametrize("output", ["plain", "penalty", "straight_through", "gsl", "ssm", "hybrid",
                                    ("straight_through", "ssm"), nn.gradient_snapping(mode="ray"),
                                    nn.space_shuttle(restart=True, unit="batch")], ids=str)
def test_every_rule_learns_codes_that_beat_codes_of_the_raw_vectors(output):
    model = make(output=output).fit(X, Y)
    raw = nq.ProductQuantizer(m=2, nbits=4, random_state=0).fit(X)
    baseline = metrics.mean_average_precision(raw.scorer(Q).scores(raw.encode(X)), YQ, Y)
    assert adc_map(model) > baseline + 0.15
    assert model.encode(X).shape == (600, 1)  # two numbers of 4 bits
    assert model.transform(Q).shape == (200, 8)
    assert [figures["epoch"] for figures in model.history_] == list(range(9))
    assert model.history_[0]["ramp"] == 0 < model.history_[-1]["ramp"] == 1


CODECS = {
    "PQ": nq.ProductQuantizer(2, 4),
    "OPQ": nq.OptimizedProductQuantizer(2, 4, n_iter=3),
    "residual": nq.ResidualQuantizer(2, 4),
    "generalized residual": nq.GeneralizedResidualQuantizer(2, 4, n_iter=1),
    "generalized residual, no norm": nq.GeneralizedResidualQuantizer(2, 4, n_iter=1, regularization=1.0,
                                                                     norm="constant"),
    "additive": nq.AdditiveQuantizer(2, 4, n_iter=2),
    "local search": nq.LocalSearchQuantizer(2, 4, n_iter=2, train_steps=2, encode_steps=2),
    "lattice": nq.SphericalLattice(r2=3),
    "sign": nq.SignQuantizer(),
    "sign, Hamming": nq.SignQuantizer(asymmetric=False),
    "ITQ": nq.ITQ(8),
    "ITQ, Hamming": nq.ITQ(6, asymmetric=False),
    "rotation, PQ": nq.PreTransformed(nq.Rotation(), nq.ProductQuantizer(2, 4)),
}
RULES = {"plain": "plain", "penalty": "penalty", "straight-through": "straight_through", "GSL": "gsl", "SSM": "ssm",
         "ray": nn.gradient_snapping(mode="ray")}
FEW, FEW_Y = X[:240], Y[:240]


@cache
def by_rule(codec, rule):
    return over(codec, RULES[rule]).fit(FEW, FEW_Y)


def over(codec, output="gsl", **params):
    return make(**{"quantizer": CODECS[codec], "output": output, "hidden": (16,), "epochs": 3, "warmup": 0.3,
                   "ramp": 0.0, "validation": 0.2, **params})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("codec", [pytest.param(name, marks=pytest.mark.core) if name == "residual" else name
                                   for name in CODECS])
def test_every_codec_is_trained_by_every_rule(codec, rule):
    model = by_rule(codec, rule)
    for figures in model.history_:
        numbers = [figures[name] for name in ("loss", "distortion", "validation") if figures[name] is not None]
        assert np.isfinite(numbers).all()
    assert 0 < model.history_[-1]["distortion"] < 1
    assert model.history_[-1]["validation"] > 0.2  # of a random order 0.1
    codes = model.encode(Q)
    assert codes.shape == (len(Q), model.code_size)
    outputs = model.transform(Q)
    error = np.square(outputs - model.decode(codes)).sum(axis=1).mean()
    assert error < 0.9 * np.square(outputs - outputs.mean(axis=0)).sum(axis=1).mean()
    result = model.index(FEW).search(Q, 5)
    assert (FEW_Y[result.ids] == YQ[:, None]).mean() > 0.25
    # The rule did something; but in a block of one dimension, as signs have, there is one way downhill, and no choice.
    same = rule == "plain" or (rule == "ray" and codec.startswith("sign"))
    assert (by_rule(codec, "plain").network_.parameters.tobytes() == model.network_.parameters.tobytes()) == same


@pytest.mark.parametrize("codec", [pytest.param(name, marks=pytest.mark.core) if name == "lattice" else name
                                   for name in CODECS])
def test_over_every_codec_a_seed_gives_the_same_bits_with_any_threads_and_through_a_file(codec, tmp_path):
    whole = over(codec, ("straight_through", "ssm"), threads=1).fit(FEW, FEW_Y)
    stopped = over(codec, ("straight_through", "ssm"), threads=2, callback=stop_after(1)).fit(FEW, FEW_Y)
    nq.save(stopped, tmp_path / "stopped.npq")
    again = nq.load(tmp_path / "stopped.npq").set_params(threads=2).fit(FEW, FEW_Y, resume=True)
    nq.save(again, tmp_path / "again.npq")
    for other in (again, nq.load(tmp_path / "again.npq")):
        assert other.network_.parameters.tobytes() == whole.network_.parameters.tobytes()
        assert other.encode(Q).tobytes() == whole.encode(Q).tobytes()
        assert other.decode(other.encode(Q)).tobytes() == whole.decode(whole.encode(Q)).tobytes()
        found, wanted = (tuple(model.index(FEW).search(Q, 5)) for model in (other, whole))
        assert [part.tobytes() for part in found] == [part.tobytes() for part in wanted]


@pytest.mark.parametrize("codec", ["residual", "generalized residual", "additive", "local search", "lattice"])
def test_ray_mode_chooses_among_codewords_near_the_outputs(codec):
    """The candidates of a codec that is no product: the nearest first, then others, none of them it."""
    model = by_rule(codec, "ray")
    y = model.transform(Q)
    near = model.quantizer_.nearby(y, 3)
    assert near.shape == (len(Q), 1, 3, 8)
    assert near[:, 0, 0].tobytes() == model.quantizer_.nearest(y).tobytes()
    distance = np.linalg.norm(near[:, 0] - y[:, None], axis=2)
    assert (np.diff(distance, axis=1) > -1e-5).all()
    assert (np.abs(near[:, 0, 1:] - near[:, 0, :1]).max(axis=2) > 0).all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_catalyzer_goes_before_every_codec(codec):
    chained = spreading().codec(CODECS[codec], FEW)
    spread = spreading().transform(Q)
    inner = chained.quantizer_
    assert chained.encode(Q).tobytes() == inner.encode(spread).tobytes()
    index = nq.FlatIndex(chained)
    index.add(FEW)
    plain = nq.FlatIndex(inner)
    plain.add(spreading().transform(FEW))
    assert index.search(Q, 5).ids.tobytes() == plain.search(spread, 5).ids.tobytes()
    near = metrics.exact_neighbors(FEW, Q, 1)[1]
    assert metrics.recall_at(index.search(Q, 48).ids, near, 48) > 0.4  # at random 0.2


@cache
def spreading():
    return nq.Catalyzer(8, (16,), epochs=2, negative_rank=20, random_state=0).fit(FEW)


def test_a_codec_whose_codes_do_not_decode_is_told_before_any_training():
    model = make(quantizer=nq.SpectralHashing(8))
    with pytest.raises(NotInvertibleError, match="no inverse_transform"):
        model.fit(X, Y)
    assert not hasattr(model, "network_")


@pytest.mark.core
@pytest.mark.parametrize("output", ["gsl", ("straight_through", "ssm")], ids=str)
def test_same_seed_same_bits_for_1_2_and_7_threads(output):
    params = {"output": output, "batch_norm": True, "validation": 0.2}
    first, *others = (make(threads=threads, **params).fit(X, Y) for threads in (1, 1, 2, 7))
    for other in others:
        same_model(first, other)
    assert make(**{**params, "random_state": 1}).fit(X, Y).encode(Q).tobytes() != first.encode(Q).tobytes()


def test_no_strength_is_plain_training_bit_for_bit():
    same_model(make(output="plain").fit(X, Y), make(output=nn.gradient_snapping(strength=0.0)).fit(X, Y))
    same_model(make(output="plain").fit(X, Y), make(output=nn.quantization_penalty(strength=0.0)).fit(X, Y))


def test_a_rule_lowers_the_distortion_of_the_outputs():
    plain, pulled = (make(output=output, epochs=20, d_out=16).fit(X, Y) for output in ("plain", "gsl"))
    assert pulled.history_[-1]["distortion"] < 0.9 * plain.history_[-1]["distortion"]


@pytest.mark.parametrize("labels", [Y.astype(float), np.array([f"digit {y}" for y in Y]), Y[:, None]],
                         ids=["float", "str", "column"])
def test_class_labels_of_any_kind_are_the_same_supervision(labels):
    same_model(make().fit(X, Y), make().fit(X, labels))


def test_indicator_matrix_of_one_label_a_row_means_the_classes():
    model = make(validation=0.2).fit(X, np.eye(10, dtype=int)[Y])
    assert adc_map(model) > 0.6
    assert model.history_[-1]["validation"] > 0.6


def test_multi_label_rows_are_similar_where_they_share_one():
    both = np.stack([Y % 2 == 0, Y % 2 == 1, Y < 5], axis=1)
    model = make(validation=0.2).fit(X, both)
    queries = np.stack([YQ % 2 == 0, YQ % 2 == 1, YQ < 5], axis=1)
    assert adc_map(model, both, queries) > adc_map(make(epochs=1).fit(X, Y), both, queries)


def some_pairs(count, rng):
    i = rng.integers(len(X), size=count // 2)
    same = np.array([rng.choice(np.flatnonzero(Y == Y[a])) for a in i])
    other = rng.integers(len(X), size=count // 2)
    pairs = np.concatenate([np.stack([i, same], 1), np.stack([i, other], 1)])
    return np.column_stack([pairs, Y[pairs[:, 0]] == Y[pairs[:, 1]]]).astype(int)


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_pairs(loss):
    pairs = some_pairs(6000, np.random.default_rng(0))
    model = make(loss=loss, validation=0.2).fit(X, pairs=pairs)
    assert model.history_[-1]["validation"] > np.mean(pairs[:, 2]) + 0.2  # average precision of a random order
    assert adc_map(model) > 0.55


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_triplets(loss):
    rng = np.random.default_rng(0)
    i = rng.integers(len(X), size=4000)
    j = np.array([rng.choice(np.flatnonzero(Y == Y[a])) for a in i])
    k = np.array([rng.choice(np.flatnonzero(Y != Y[a])) for a in i])
    model = make(loss=loss, validation=0.1).fit(X, triplets=np.stack([i, j, k], 1))
    assert model.history_[-1]["validation"] > 0.85  # of the held-out triplets in order; a random order has 0.5
    assert adc_map(model) > 0.55


def test_without_supervision_neighbours_in_input_space_stay_near():
    model = make(validation=0.2).fit(X)
    truth = metrics.exact_neighbors(X, Q, 1)[1]
    ids = model.index(X).search(Q, 20).ids
    assert metrics.recall_at(ids, truth, 20) > 0.45  # 20 of 600 at random: 0.03
    assert model.history_[-1]["validation"] > 0.2


def test_classification_loss_learns_too():
    assert adc_map(make(loss="softmax", output=("straight_through", "gsl")).fit(X, Y)) > 0.6


def test_moving_average_codebooks_follow_the_outputs():
    model = make(codebooks="average", epochs=9).fit(X, Y)
    assert adc_map(model) > 0.6
    assert model.history_[-1]["distortion"] < 0.5


@pytest.mark.parametrize("change", [{"optimizer": "sgd", "lr": 0.5}, {"optimizer": nn.Adam(1e-3)},
                                    {"schedule": nn.step_schedule((0.5,), (1.0, 0.1))}, {"mining": "semi-hard"},
                                    {"mining": "random"}, {"whiten": 16}, {"batch_norm": True},
                                    {"normalize": False}, {"hidden": ()}, {"hidden": [16, 16]}], ids=str)
def test_options_learn(change):
    assert adc_map(make(**change).fit(X, Y)) > 0.5


def test_validation_keeps_the_best_epoch_and_patience_stops():
    model = make(validation=(Q, YQ), patience=2, epochs=40, lr=3e-2, warmup=0.1, ramp=0.05).fit(X, Y)
    figures = [f["validation"] for f in model.history_]
    best = max(figure for figure in figures if figure is not None)
    assert len(figures) < 40 or best == figures[-1]
    # The codebooks kept are at least as near as those the figure was measured with; the network is the best epoch's.
    assert adc_map(model) == pytest.approx(best, abs=0.03)
    assert model.training_ is None


def stop_after(epoch):
    return lambda figures: figures["epoch"] == epoch


@pytest.mark.parametrize("epoch", [0, 3])
def test_resumed_training_gives_the_bits_of_an_uninterrupted_one(epoch, tmp_path):
    params = {"output": ("straight_through", "ssm"), "batch_norm": True, "validation": 0.2, "loss": "triplet"}
    whole = make(**params).fit(X, Y)
    stopped = make(**params, callback=stop_after(epoch)).fit(X, Y)
    assert stopped.training_ is not None
    assert len(stopped.history_) == epoch + 1
    assert adc_map(stopped) > 0.3  # usable
    nq.save(stopped, tmp_path / "stopped.npq")
    for again in (copy.deepcopy(stopped), nq.load(tmp_path / "stopped.npq"), pickle.loads(pickle.dumps(
            stopped.set_params(callback=None)))):
        again.set_params(callback=None).fit(X, Y, resume=True)
        same_model(whole, again)
        assert again.training_ is None


def test_ctrl_c_leaves_a_usable_model_that_resumes(monkeypatch):
    whole = make().fit(X, Y)
    model, steps = make(), []
    update = nn.Adam.update

    def interrupted(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 35:  # in the middle of an epoch of 10 steps
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)
    monkeypatch.setattr(nn.Adam, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    assert len(model.history_) == 3
    assert adc_map(model) > 0.3
    same_model(whole, model.fit(X, Y, resume=True))


def test_ctrl_c_during_the_last_codebooks_loses_nothing(monkeypatch):
    whole, model = make().fit(X, Y), make()
    fit = nq.ProductQuantizer._fit

    def interrupted(self, x):
        if sum(calls) == 2:  # tried at the beginning, fitted in training, and now for the last time
            raise KeyboardInterrupt
        calls.append(1)
        fit(self, x)
    calls = []
    monkeypatch.setattr(nq.ProductQuantizer, "_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    assert not hasattr(model, "quantizer_")
    assert len(model.training_["history"]) == 9
    monkeypatch.undo()
    same_model(whole, model.fit(X, Y, resume=True))


def test_a_codec_with_a_generator_is_left_alone_and_resumes():
    rng = np.random.default_rng(5)
    codec = nq.ProductQuantizer(m=2, nbits=4, random_state=rng)
    before = repr(rng.bit_generator.state)
    whole = make(quantizer=codec).fit(X, Y)
    again = make(quantizer=codec, callback=stop_after(4)).fit(X, Y).set_params(callback=None).fit(X, Y, resume=True)
    same_model(whole, again)
    assert repr(rng.bit_generator.state) == before
    assert rng.bit_generator.seed_seq.n_children_spawned == 0


def test_validation_against_a_part_of_a_large_database(monkeypatch):
    monkeypatch.setattr("npquant._supervision._VALIDATION_DATABASE", 100)
    for labels in (Y, np.eye(10, dtype=int)[Y], None):
        assert 0.1 < make(validation=0.2).fit(X, labels).history_[-1]["validation"] < 1


def test_an_index_keeps_the_codec_it_was_filled_with():
    model = make().fit(X, Y)
    index, before = model.index(X), None
    for change in (lambda: None, lambda: model.refine(X[:100]), lambda: model.set_params(random_state=1).fit(X, Y)):
        change()
        found = index.search(Q, 5)
        assert before is None or (found.ids.tobytes(), found.distances.tobytes()) == before
        before = found.ids.tobytes(), found.distances.tobytes()


def test_a_file_whose_parts_do_not_fit_together_is_refused(tmp_path):
    model = make().fit(X, Y)
    model.quantizer_ = nq.ProductQuantizer(m=2, nbits=4).fit(X)
    nq.save(model, tmp_path / "bad.npq")
    with pytest.raises(nq.FormatError, match="do not fit together"):
        nq.load(tmp_path / "bad.npq")


def test_a_failing_callback_loses_nothing():
    def callback(figures):
        if figures["epoch"] == 2:
            raise OSError("disk full")
    model = make(callback=callback)
    with pytest.raises(OSError, match="disk full"):
        model.fit(X, Y)
    same_model(make().fit(X, Y), model.set_params(callback=None).fit(X, Y, resume=True))


def test_resume_with_other_data_is_refused():
    model = make(callback=stop_after(1)).fit(X, Y)
    for arguments, params, what in (((X[:500], Y[:500]), {}, "another X, y"), ((X, Y[::-1]), {}, "another y"),
                                    ((X, Y), {"output": "ssm"}, "another output"),
                                    ((X, Y), {"optimizer": "sgd"}, "another optimizer")):
        other = copy.deepcopy(model).set_params(**params)
        with pytest.raises(InvalidInputError, match=what):
            other.fit(*arguments, resume=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow is what is provoked here
@pytest.mark.parametrize("params", [{"lr": 1e30, "epochs": 6, "batch_size": 1000}, {"lr": 1e12, "epochs": 1}], ids=str)
def test_divergence_in_the_last_step_of_an_epoch(params):
    model = make(normalize=False, **params)
    with pytest.raises(DivergedError, match="not finite, or too large"):
        model.fit(X, Y)
    assert np.isfinite(model.transform(Q)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow is what is provoked here
def test_divergence_is_explained_and_leaves_the_model_usable():
    model = make(normalize=False, optimizer="sgd", lr=0.05, output=nn.quantization_penalty(1e30, unit="raw"))
    with pytest.raises(DivergedError, match=r"In epoch 3 the .* is not finite.* Lower lr = 0.05"):
        model.fit(X, Y)
    assert len(model.history_) == 3
    assert np.isfinite(model.transform(Q)).all()
    assert adc_map(model) > 0.3


@pytest.mark.core
def test_index_embeds_raw_queries_and_survives_a_file(tmp_path):
    model = make().fit(X, Y)
    index = model.index(X, ids=np.arange(600) + 1000)
    distances, ids = index.search(Q, 5)
    plain = nq.FlatIndex(model.quantizer_)
    plain.add(model.transform(X))
    assert np.array_equal(plain.search(model.transform(Q), 5).ids + 1000, ids)
    nq.save(index, tmp_path / "index.npq")
    again = nq.load(tmp_path / "index.npq").search(Q, 5)
    assert again.ids.tobytes() == ids.tobytes()
    assert again.distances.tobytes() == distances.tobytes()


@pytest.mark.parametrize(("change", "arguments", "message"), [
    ({}, {"y": Y[:-1]}, "y has 599 rows and X has 600"),
    ({}, {"y": np.zeros(600)}, "single class"),
    ({}, {"y": np.arange(600)}, "class of its own"),
    ({}, {"y": np.where(np.arange(600) == 3, np.nan, Y)}, "y contains NaN"),
    ({}, {"y": np.ones((600, 3), int)}, "every pair of rows similar"),
    ({}, {"y": np.full((600, 2), 2)}, "zeros and ones"),
    ({}, {"pairs": [[0, 600, 1]]}, r"pairs row 0 is \[0, 600\], out of range"),
    ({}, {"pairs": [[0, 1, 2]]}, "third column"),
    ({}, {"pairs": [[0, 1, 1]]}, "all similar"),
    ({}, {"pairs": [[0, 1]]}, r"shape \(rows, 3\)"),
    ({}, {"pairs": [[0, 1, 1], [2, 3, 0]]}, "use loss='contrastive'"),
    ({}, {"triplets": [[0, 1, -1]]}, r"out of range: rows of X are numbered 0 … 599"),
    ({}, {"triplets": np.empty((0, 3), int)}, "triplets is empty"),
    ({}, {"y": Y, "pairs": [[0, 1, 1]]}, "Both y and pairs"),
    ({"loss": "softmax"}, {}, "one class label a row"),
    ({"loss": "hinge"}, {"y": Y}, "'triplet', 'contrastive', 'softmax'"),
    ({"output": "pull"}, {"y": Y}, "output is 'pull'"),
    ({"quantizer": nq.ProductQuantizer(m=3)}, {"y": Y}, "8 of X is not divisible by m = 3"),
    ({"quantizer": "pq"}, {"y": Y}, "quantizer is 'pq'"),
    ({"d_out": 0}, {"y": Y}, "d_out is 0"),
    ({"epochs": 0}, {"y": Y}, "epochs is 0"),
    ({"lr": 0}, {"y": Y}, "lr is 0"),
    ({"patience": 3}, {"y": Y}, "patience needs a validation"),
    ({"validation": 1.5}, {"y": Y}, "validation is 1.5"),
    ({"validation": (Q, YQ[:-1])}, {"y": Y}, "validation y has 199 rows"),
    ({"n_neighbors": 599}, {}, "lower n_neighbors"),
    ({"whiten": 65}, {"y": Y}, "n_components is 65"),
    ({"codebooks": "none"}, {"y": Y}, "codebooks is 'none'"),
    ({"schedule": "linear"}, {"y": Y}, "schedule is 'linear'"),
    ({"hidden": 512}, {"y": Y}, "hidden is 512"),
    ({"hidden": (0,)}, {"y": Y}, "hidden is 0"),
    ({"callback": 3}, {"y": Y}, "callback is 3"),
    ({"validation": (Q, YQ + 100)}, {"y": Y}, "validation says nothing"),
    ({"validation": (Q, YQ[:, None])}, {"y": Y}, r"validation y has shape \(200, 1\)"),
    ({"validation": 0.1}, {"triplets": [[0, 1, 2]]}, "none can be held out"),
    ({}, {"triplets": [[0, 1, 2], [5, 6, 5]]}, r"triplets row 1 is \[5, 6, 5\]"),
], ids=lambda value: str(value)[:40])
def test_bad_input_is_told_before_any_training(change, arguments, message):
    model = make(**change)
    with pytest.raises(InvalidInputError, match=message):
        model.fit(X, **arguments)
    assert not hasattr(model, "network_")


@pytest.mark.core
def test_bad_vectors_and_unfitted_use():
    model = make()
    for call in (model.transform, model.encode, model.index, model.decode):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(Q)
    bad = X.copy()
    bad[3, 5] = np.nan
    with pytest.raises(InvalidInputError, match=r"NaN \(row 3, column 5\)"):
        model.fit(bad, Y)
    with pytest.raises(InvalidInputError, match="Expected 2D"):
        model.fit(X[0], Y[:1])
    with pytest.raises(InvalidInputError, match="minimum of 2"):
        model.fit(X[:0], Y[:0])
    model.fit(X, Y)
    with pytest.raises(InvalidInputError, match="63 features, but DeepQuantizer is expecting 64"):
        model.transform(Q[:, :-1])
    with pytest.raises(InvalidInputError, match="never cast"):
        model.decode(model.encode(Q).astype(np.int64))
    with pytest.raises(NotInvertibleError, match="decode"):
        model.inverse_transform(model.encode(Q))


def test_fewer_points_than_codewords_is_said_once():
    with pytest.warns(NpquantWarning, match="100 training vectors for codebooks of 256") as said:
        make(quantizer=nq.ProductQuantizer(m=2), epochs=3).fit(X[:100], Y[:100])
    assert len(said) == 1
