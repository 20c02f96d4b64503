"""Catalyzer: what it learns, which triplets it learns from, every ending of a training, the codecs behind it."""

import copy
import json
import pickle

import laws
import numpy as np
import pytest
import reference

import npquant as nq
from npquant import catalyzer, cli, metrics, nn
from npquant.errors import DivergedError, InvalidInputError, NotFittedError, NotInvertibleError
from npquant.quantizers.base import Quantizer
from npquant.quantizers.transformed import PreTransformed

DIGITS = nq.datasets.load_digits()
X, Q = DIGITS.X_train[:600], DIGITS.X_test[:200]
PQ = nq.ProductQuantizer(m=4, nbits=4)


class Corners(Quantizer):
    """The corners of a cube on the unit sphere: a quantizer that learns nothing from the data."""

    def __init__(self):
        pass

    threads = None

    def _fit(self, x):
        pass

    @property
    def code_size(self):
        return -(-self.n_features_in_ // 8)

    def _encode(self, x):
        return np.packbits(x > 0, axis=1)

    def _decode(self, codes):
        bits = np.unpackbits(codes, axis=1, count=self.n_features_in_).astype(np.float32)
        return (2 * bits - 1) / np.float32(np.sqrt(self.n_features_in_))


def make(**params):
    defaults = {"d_out": 8, "hidden": (32,), "epochs": 5, "batch_size": 32, "quantizer": PQ, "random_state": 0}
    return nq.Catalyzer(**{**defaults, **params})


def recall(codec, base=X, queries=Q, k=10):
    ids = codec.scorer(queries).topk(codec.encode(base), np.arange(len(base)), k)[1]
    return metrics.recall_at(ids, metrics.exact_neighbors(base, queries, 1)[1], k)


def figures(model):
    return [{key: value for key, value in entry.items() if key not in ("seconds", "mining")}
            for entry in model.history_]


def same_model(a, b):
    assert a.network_.parameters.tobytes() == b.network_.parameters.tobytes()
    assert {name: v.tobytes() for name, v in a.network_.running.items()} == {
        name: v.tobytes() for name, v in b.network_.running.items()}
    assert figures(a) == figures(b)
    assert a.lam_ == b.lam_
    assert a.transform(Q).tobytes() == b.transform(Q).tobytes()


# ------------------------------------------------------------------------------------------ what it learns


@pytest.mark.core
def test_a_fixed_quantizer_fits_spread_vectors():
    model, crowded = (make(hidden=(64,), epochs=8, lam=lam).fit(X) for lam in (0.1, 0.0))
    spread, unspread = (recall(one.codec(Corners(), X)) for one in (model, crowded))
    assert spread > unspread + 0.1, (spread, unspread)
    z = model.transform(Q)
    assert z.dtype == np.float32
    assert z.shape == (200, 8)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)


def test_lambda_trades_ranks_for_evenness():
    none, much = (make(lam=lam, epochs=8).fit(X) for lam in (0.0, 1.0))
    evenness = [nn.KoLeo().value_and_grad(model.transform(Q))[0] for model in (none, much)]
    assert evenness[1] < evenness[0] - 0.1
    assert none.history_[-1]["rank"] < much.history_[-1]["rank"]
    assert [entry["loss"] for entry in much.history_] == [entry["rank"] + entry["koleo"] for entry in much.history_]
    assert none.history_[-1]["loss"] == none.history_[-1]["rank"]


# Not the ray mode of snapping: the corners beside the nearest one all lie off the way, and it does next to nothing.
@pytest.mark.parametrize("output", ["straight_through", "gsl", "ssm", "penalty", ("straight_through", "hybrid")],
                         ids=str)
def test_end_to_end_outputs_lie_nearer_to_codewords(output):
    plain = make(quantizer=Corners(), epochs=8).fit(X)
    model = make(quantizer=Corners(), epochs=8, output=output, warmup=0.25, ramp=0.25).fit(X)
    error = [metrics.distortion(z, Corners().fit(z).nearest(z)) for z in (plain.transform(Q), model.transform(Q))]
    assert error[1] < error[0] * (1.05 if output == "straight_through" else 0.99), error
    assert [entry["distortion"] is None for entry in model.history_] == [True] * 2 + [False] * 6
    assert recall(model.codec(Corners(), X)) > recall(plain.codec(Corners(), X)) - 0.1


def test_before_the_warm_up_ends_a_rule_changes_nothing():
    plain, waiting = make().fit(X), make(output=("straight_through", "penalty"), warmup=1.0).fit(X)
    assert plain.network_.parameters.tobytes() == waiting.network_.parameters.tobytes()


def test_the_best_of_several_weights_is_kept():
    model = make(lam=(0.0, 0.1, 5.0), validation=0.2, epochs=3).fit(X)
    assert [entry["lam"] for entry in model.history_] == [0.0] * 3 + [0.1] * 3 + [5.0] * 3
    best = max(model.history_, key=lambda entry: entry["validation"])
    assert max(e["validation"] for e in model.history_ if e["lam"] == model.lam_) == best["validation"]
    alone = make(lam=0.1, validation=0.2, epochs=3).fit(X)
    assert figures(alone) == figures(model)[3:6]
    if model.lam_ == 0.1:
        assert alone.network_.parameters.tobytes() == model.network_.parameters.tobytes()


def test_the_best_validation_is_kept_and_is_a_recall():
    model = make(validation=Q, validate_every=2, schedule="constant", lr=0.3, epochs=9).fit(X)
    told = [entry["validation"] for entry in model.history_]
    assert [value is not None for value in told] == [False, True] * 4 + [True]
    codec = nq.ProductQuantizer(m=4, nbits=4, random_state=int(np.random.default_rng(0).integers(9)))
    again = recall(model.codec(codec, X))
    assert again == pytest.approx(max(value for value in told if value is not None), abs=0.07)


# --------------------------------------------------------------------------------------------- its triplets


def spied(monkeypatch, model, x):
    """The outputs that each epoch began with, what they are quantized to, and its batches (3, b)."""
    epochs, mine, step = [], catalyzer._Trainer._mine, catalyzer._Trainer._step

    def mining(self, outputs, *rest):
        words = self._codewords(1.0)
        epochs.append((outputs.copy(), None if words is None else words.nearest(outputs), []))
        return mine(self, outputs, *rest)

    def stepping(self, batch, *rest):
        epochs[-1][2].append(batch.copy())
        return step(self, batch, *rest)
    monkeypatch.setattr(catalyzer._Trainer, "_mine", mining)
    monkeypatch.setattr(catalyzer._Trainer, "_step", stepping)
    model.fit(x)
    return epochs


@pytest.mark.core
@pytest.mark.parametrize("output", ["plain", "straight_through"])
def test_positives_and_negatives_are_the_neighbours_they_should_be(monkeypatch, output):
    x = X[:150].copy()
    x[100:104] = x[0]  # five at one place: a row is not its own neighbour
    near = reference_order(x, x)
    for outputs, quantized, batches in spied(monkeypatch, make(n_positives=3, negative_rank=20, epochs=2,
                                                               output=output), x):
        anchors, positives, negatives = np.concatenate(batches, axis=1)
        assert sorted(anchors.tolist()) == list(range(150))
        assert {batch.shape[1] for batch in batches} == {30}
        assert (positives[:, None] == near[anchors][:, :3]).any(axis=1).all()
        assert len(set((positives[:, None] == near[anchors][:, :3]).argmax(axis=1).tolist())) == 3
        base = quantized if output == "straight_through" else outputs
        np.testing.assert_array_equal(negatives, reference_order(base, outputs)[anchors][:, 19])


def reference_order(base, queries):
    """For each query all other rows, nearest first (those at one distance by number)."""
    k = len(base)
    found = reference.search(queries, base, list(range(k)), k, "l2", 1)[1]
    rows = np.arange(len(queries))
    last = np.array([[r for r in row if r != own] for row, own in zip(found.tolist(), rows.tolist())])
    return last


def test_mining_among_fewer_points_keeps_the_share(monkeypatch):
    model = make(n_positives=3, negative_rank=50, mining_points=60, epochs=1)
    [(outputs, _, batches)] = spied(monkeypatch, model, X[:300])
    anchors, _, negatives = np.concatenate(batches, axis=1)
    order = reference_order(outputs, outputs)
    place = (order[anchors] == negatives[:, None]).argmax(axis=1) + 1
    assert len(set(negatives.tolist())) <= 60
    assert 40 < place.mean() < 60  # the 10th of a fifth


def test_no_batch_is_a_small_rest(monkeypatch):
    [(_, _, batches)] = spied(monkeypatch, make(epochs=1, batch_size=64), X[:130])
    assert [batch.shape[1] for batch in batches] == [44, 43, 43]


# ------------------------------------------------------------------------------------ bits, again and again


@pytest.mark.core
@pytest.mark.parametrize("output", ["plain", ("straight_through", "ssm")], ids=str)
def test_same_seed_same_bits_for_1_2_and_7_threads(output):
    params = {"output": output, "validation": 0.1, "mining_points": 300, "epochs": 3}
    first, *rest = (make(threads=threads, **params).fit(X) for threads in (1, 1, 2, 7))
    for other in rest:
        same_model(first, other)
    assert make(**{**params, "random_state": 1}).fit(X).transform(Q).tobytes() != first.transform(Q).tobytes()


@pytest.mark.core
def test_a_transform_does_not_depend_on_its_batch():
    model = make(epochs=1, d_out=5, hidden=(40, 30), quantizer=None).fit(X)
    whole = model.transform(X)
    order = np.random.default_rng(0).permutation(len(X))
    for rows in (order, order[:17], [3], slice(5, 70, 3)):
        assert model.transform(X[rows]).tobytes() == whole[rows].tobytes()
    many = np.resize(X, (3000, 64))
    for threads in (1, 2, 7):
        assert model.set_params(threads=threads).transform(many).tobytes() == np.resize(whole, (3000, 5)).tobytes()
    np.testing.assert_allclose(whole, model.network_.predict(model.input_.transform(X)), atol=2e-6)
    index = nq.FlatIndex(model.codec(nq.ProductQuantizer(m=5, nbits=2), X))
    assert index.search(Q[:0], 3).ids.shape == (0, 3)


def stop_after(count):
    def callback(entry):
        seen.append(entry)
        return len(seen) == count
    seen = []
    return callback


@pytest.mark.parametrize(("count", "lam"), [(1, 0.05), (3, 0.05), (2, (0.05, 0.2)), (5, (0.05, 0.2)), (7, (0.05, 0.2))])
def test_resumed_training_gives_the_bits_of_an_uninterrupted_one(count, lam, tmp_path):
    params = {"output": ("straight_through", "ssm"), "validation": 0.2, "lam": lam, "mining_points": 300}
    whole = make(**params).fit(X)
    stopped = make(**params, callback=stop_after(count)).fit(X)
    assert stopped.training_ is not None
    assert len(stopped.history_) == count
    assert recall(stopped.codec(PQ, X)) > 0.3  # usable
    nq.save(stopped, tmp_path / "stopped.npq")
    for again in (copy.deepcopy(stopped), nq.load(tmp_path / "stopped.npq"),
                  pickle.loads(pickle.dumps(stopped.set_params(callback=None)))):
        same_model(whole, again.set_params(callback=None).fit(X, resume=True))
        assert again.training_ is None


def test_ctrl_c_leaves_a_usable_model_that_resumes(monkeypatch):
    whole, model, steps = make().fit(X), make(), []
    update = nn.SGD.update

    def interrupted(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 50:  # in the middle of an epoch of 19 steps
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)
    monkeypatch.setattr(nn.SGD, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert len(model.history_) == 2
    assert recall(model.codec(PQ, X)) > 0.3
    same_model(whole, model.fit(X, resume=True))


def test_a_failing_callback_loses_nothing():
    def callback(entry):
        if entry["epoch"] == 2:
            raise OSError("disk full")
    model = make(callback=callback)
    with pytest.raises(OSError, match="disk full"):
        model.fit(X)
    same_model(make().fit(X), model.set_params(callback=None).fit(X, resume=True))


def test_resume_with_other_data_is_refused():
    model = make(callback=stop_after(1), validation=0.2).fit(X)
    for x, params, what in ((X[:500], {}, "another X, validation"), (X, {"output": "ssm"}, "another output"),
                            (X, {"lam": 0.1}, "another lam"), (X, {"validation": 0.1}, "another validation"),
                            (X, {"quantizer": nq.ProductQuantizer(m=2)}, "another quantizer")):
        with pytest.raises(InvalidInputError, match=what):
            copy.deepcopy(model).set_params(**params).fit(x, resume=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow is what is provoked here
def test_divergence_is_explained_and_leaves_the_model_usable():
    model = make(lr=1e3, schedule=nn.step_schedule((0.4,), (1e-4, 1e35)))
    with pytest.raises(DivergedError, match=r"In epoch 2 the network's .* is not finite.* Lower lr = 1000"):
        model.fit(X)
    assert len(model.history_) == 2
    assert recall(model.codec(PQ, X)) > 0.3


# ------------------------------------------------------------------------------------ the codecs behind it


class DecodesBehind(PreTransformed):
    """As PreTransformed, but decoding ends behind the transform, so that laws about decoding can be asked."""

    def _before(self, z):
        return z


@pytest.mark.parametrize("law", [law for law in laws.CODEC_LAWS if law is not laws.decoding_again_changes_nothing],
                         ids=lambda law: law.__name__)
def test_laws_of_the_composed_codec(law, monkeypatch):
    if "compiled" in law.__name__ and not laws.HAVE_NUMBA:
        pytest.skip("numba is not installed")
    monkeypatch.setitem(nq.persist.KINDS, "DecodesBehind", f"{__name__}:DecodesBehind")
    x = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    x[100:150] = x[:50]
    inner = nq.Catalyzer(8, hidden=(8,), epochs=1, batch_size=64, negative_rank=20)
    law(DecodesBehind(inner, nq.ProductQuantizer(m=4, nbits=4, n_iter=3), random_state=3).fit(x), x)


@pytest.mark.core
def test_a_codec_behind_a_catalyzer_searches_and_survives_a_file(tmp_path):
    model = make().fit(X)
    codec = model.codec(nq.ProductQuantizer(m=4, nbits=4, random_state=0), X)
    fitted = PreTransformed(make(), nq.ProductQuantizer(m=4, nbits=4, random_state=0)).fit(X)
    assert codec.encode(Q).tobytes() == fitted.encode(Q).tobytes()
    kept = codec.encode(Q).tobytes()
    copy.copy(model).fit(X[:200])
    model.set_params(random_state=1).fit(X)  # the codec has its own
    assert codec.encode(Q).tobytes() == kept
    model = codec.transform_
    index = nq.FlatIndex(codec)
    index.add(X)
    plain = nq.FlatIndex(codec.quantizer_)
    plain.add(model.transform(X))  # queries are transformed, and not coded
    found, wanted = index.search(Q, 7), plain.search(model.transform(Q), 7)
    assert found.ids.tobytes() == wanted.ids.tobytes()
    assert found.distances.tobytes() == wanted.distances.tobytes()
    nq.save(index, tmp_path / "index.npq")
    again = nq.load(tmp_path / "index.npq").search(Q, 7)
    assert again.ids.tobytes() == found.ids.tobytes()
    with pytest.raises(NotInvertibleError, match="Catalyzer has no inverse_transform"):
        codec.decode(codec.encode(Q))


def test_a_file_whose_parts_do_not_fit_together_is_refused(tmp_path):
    model = make(epochs=1).fit(X)
    model.input_ = type(model.input_)().fit(X[:, :32])
    nq.save(model, tmp_path / "bad.npq")
    with pytest.raises(nq.FormatError, match="do not fit together"):
        nq.load(tmp_path / "bad.npq")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nq.datasets.write(tmp_path / "base.npz", {"learn": X, "base": X[:300], "queries": Q})

    def command(*words):
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()
    return command


SMALL = ("--method", "catalyzer", "--d-out", 16, "--hidden", "32", "--batch-size", 64, "--bits", 16, "--seed", 5)


def test_the_command_line_trains_builds_and_searches(run, tmp_path):
    code, out, err = run("train", "base.npz:learn", *SMALL, "--epochs", 2, "--lam", 0.1, "--validation", 0.1,
                         "--negative-rank", 9, "--output", "straight_through", "-o", "spread.npq", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["kind"], report["code_size"], len(report["history"])) == ("Catalyzer", 2, 2)
    assert 0 < report["history"][-1]["validation"] <= 1
    assert run("build", "spread.npq", "base.npz:base", "-o", "index.npq")[0] == 0
    assert run("search", "index.npq", "base.npz:queries", "-k", 7, "-o", "found.npy")[0] == 0
    lattice = nq.SphericalLattice.for_bits(16, 16)
    model = nq.Catalyzer(16, (32,), lam=0.1, batch_size=64, epochs=2, validation=0.1, output="straight_through",
                         quantizer=lattice, negative_rank=9, random_state=5).fit(X)
    index = nq.FlatIndex(model.codec(lattice, X))
    index.add(X[:300])
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), index.search(Q, 7).ids)


def test_an_interrupted_training_goes_on_from_the_command_line(run, monkeypatch):
    update, steps = nn.SGD.update, []

    def interrupted(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 25:  # in the third epoch of 10 steps
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)
    assert run("train", "base.npz:learn", *SMALL, "--epochs", 4, "-o", "whole.npq")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(nn.SGD, "update", interrupted)
        code, _, err = run("train", "base.npz:learn", *SMALL, "--epochs", 4, "-o", "part.npq")
    assert code == 130
    assert "interrupted after 2 of 4 epochs" in err
    assert run("train", "base.npz:learn", "--resume", "part.npq")[0] == 0
    whole, part = nq.load("whole.npq"), nq.load("part.npq")
    same_model(whole.transform_, part.transform_)
    assert whole.encode(Q).tobytes() == part.encode(Q).tobytes()
    assert "no interrupted training" in run("train", "base.npz:learn", "--resume", "part.npq")[2]


def test_options_that_do_not_go_together_are_told(run):
    for words, told in ((("--method", "catalyzer", "--m", 8), "--m does not go with --method catalyzer"),
                        (("--method", "pq", "--lam", 1), "--lam does not go with --method pq"),
                        (("--bits", 16), "--bits does not go with --method deep"),
                        (("--method", "catalyzer", "--lam", -1), "wanted a number from 0")):
        code, _, err = run("train", "base.npz:learn", *words, "-o", "no.npq")
        assert code == 2
        assert told in err


def test_pictures_of_what_lambda_trades_and_of_a_training(tmp_path):
    pytest.importorskip("matplotlib", reason="drawing needs it")
    rows = [{"lam": lam, "koleo": -4.0 - lam, "kept": 0.5 - lam, "recall": {"lattice": 0.3 + lam, "OPQ": 0.2}}
            for lam in (0.1, 0.0, 0.05)]
    figure = nq.plot.spreading(rows)
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[4.0, 0.5], [4.05, 0.45], [4.1, 0.4]]
    assert [line.get_label() for line in right.lines] == ["lattice", "OPQ"]
    assert right.lines[0].get_ydata().tolist() == [0.3, 0.35, 0.4]
    nq.plot.save(figure, tmp_path / "lambda.png")
    assert len(nq.plot.training_curves(make(validation=0.1, epochs=2).fit(X)).axes) == 2  # loss and validation
    with pytest.raises(InvalidInputError, match="rows is empty"):
        nq.plot.spreading([])


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("change", "message"), [
    ({"d_out": 0}, "d_out is 0"), ({"hidden": 512}, "hidden is 512"), ({"hidden": (0,)}, "hidden is 0"),
    ({"lam": -1}, "lam is -1"), ({"lam": "auto"}, "lam must be a finite number"), ({"lam": ()}, "lam is empty"),
    ({"lam": (0.1, 0.2)}, "validation chooses"), ({"lam": [0.1, np.nan], "validation": 0.1}, "lam must be a finite"),
    ({"output": "pull"}, "output is 'pull'"), ({"quantizer": "lattice"}, "quantizer is 'lattice'"),
    ({"quantizer": nq.ProductQuantizer(m=3)}, "8 of X is not divisible by m = 3"),
    ({"n_positives": 600}, "n_positives is 600, and each of the 600 training vectors has 599 others"),
    ({"negative_rank": 500, "validation": 0.2}, "negative_rank is 500, and each of the 480"),
    ({"n_positives": 0}, "n_positives is 0"), ({"mining_points": 2}, "mining_points is 2"),
    ({"epochs": 0}, "epochs is 0"), ({"lr": 0}, "lr is 0"), ({"batch_size": 1}, "batch_size is 1"),
    ({"schedule": "linear"}, "schedule is 'linear', wanted one of 'cosine', 'constant', 'steps', 'quarters'"),
    ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop'"), ({"warmup": 2}, "warmup is 2"),
    ({"validation": 1.5}, "validation is 1.5"), ({"validation": Q[:, :-1]}, "validation has 63 features"),
    ({"validate_every": 0}, "validate_every is 0"), ({"callback": 3}, "callback is 3"),
    ({"random_state": -1}, "random_state is -1"), ({"threads": 0}, "threads is 0"),
], ids=lambda value: str(value)[:40])
def test_bad_input_is_told_before_any_training(change, message):
    model = make(**change)
    with pytest.raises(InvalidInputError, match=message):
        model.fit(X)
    assert not hasattr(model, "network_")


@pytest.mark.core
def test_bad_vectors_and_unfitted_use():
    model = make(epochs=1)
    for call in (model.transform, lambda x: model.codec(PQ, x)):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(Q)
    bad = X.copy()
    bad[3, 5] = np.nan
    with pytest.raises(InvalidInputError, match=r"NaN \(row 3, column 5\)"):
        model.fit(bad)
    with pytest.raises(InvalidInputError, match="minimum of 3"):
        model.fit(X[:2])
    model.fit(X)
    with pytest.raises(InvalidInputError, match="63 features, but Catalyzer is expecting 64"):
        model.transform(Q[:, :-1])
    with pytest.raises(InvalidInputError, match="quantizer is 3"):
        model.codec(3, X)


# ------------------------------------------------------------------------------------------ found by a review


@pytest.mark.parametrize(("given", "later"), [(2, None), (None, 2), (1, 2)])
def test_a_training_goes_on_with_other_threads(given, later, tmp_path):
    params = {"output": "gsl", "validation": 0.2, "epochs": 2,
              "quantizer": PreTransformed(nq.PCA(4), nq.ProductQuantizer(m=2, nbits=3, threads=1, random_state=3))}
    stopped = make(**params, threads=given, callback=stop_after(1)).fit(X)
    nq.save(stopped, tmp_path / "stopped.npq")
    for again in (copy.deepcopy(stopped), nq.load(tmp_path / "stopped.npq")):
        again.set_params(callback=None, threads=later)
        same_model(make(**params).fit(X), again.fit(X, resume=True))


@pytest.mark.parametrize("params", [
    {"lam": np.float32(0.1), "d_out": np.int64(8), "epochs": np.int32(2)}, {"lam": np.array([0.1, 0.2])},
    {"lam": (np.float64(0.1), 0.2)}, {"quantizer": PreTransformed(nq.PCA(4), nq.ProductQuantizer(
        m=2, nbits=3, random_state=np.random.default_rng(3)))}], ids=["scalars", "array", "tuple", "generator"])
def test_a_training_with_numbers_of_numpy_goes_on_after_a_file(params, tmp_path):
    params = {"epochs": 2, "validation": 0.2, **params}
    stopped = make(**copy.deepcopy(params), callback=stop_after(1)).fit(X)
    nq.save(stopped, tmp_path / "stopped.npq")
    same_model(make(**copy.deepcopy(params)).fit(X), nq.load(tmp_path / "stopped.npq").fit(X, resume=True))


@pytest.mark.parametrize(("params", "error"), [
    ({"quantizer": nq.SpectralHashing(8), "output": "straight_through"}, NotInvertibleError),
    ({"lam": np.array(0.1)}, InvalidInputError)])
def test_what_cannot_be_leaves_the_model_as_it_was(params, error):
    model = make(**params)
    with pytest.raises(error, match=r"has no inverse_transform|lam must be a finite number, got array"):
        model.fit(X)
    assert not hasattr(model, "network_")
