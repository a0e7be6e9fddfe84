import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from medseg.cli.commands.finetune import ALL_THE_WAY
from medseg.config.build import data_settings_faults, load_arm, load_plan, read_experiment
from medseg.config.catalog import NETWORKS, SOURCES
from medseg.config.generate import KINDS
from medseg.config.load import find_config, find_faults, read_yaml, shipped_configs
from medseg.config.schema import DataConfig, ExperimentConfig
from medseg.config.translation import TranslationConfig
from medseg.errors import ConfigError, DataError
from medseg.experiment.cohort_check import refuse_own_people
from medseg.inference.intensity_prior import RefinementSettings
from medseg.priors.fit import PRIOR_KINDS, is_normalised
from medseg.training.method import MethodSettings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(shipped_configs().rglob("*.y*ml"))
EXPERIMENTS = [path for path in CONFIGS if shipped_configs() / "experiment" in path.parents]
GENERATORS = [path for path in CONFIGS if path.parent.name == "generate"]
TRANSLATORS = [path for path in CONFIGS if path.parent.name == "translation"]

PHANTOM = {"kind": "phantom", "settings": {"disease": "tumour", "n_subjects": 3}}


def minimal() -> dict:
    return {
        "title": "t",
        "sources": {"ms": [{"kind": "phantom", "settings": {"disease": "ms"}}]},
        "target": PHANTOM,
        "arms": [{"method": {"method": "ri"}}, {"method": {"method": "pr"}, "sources": ["ms"]}],
    }


def write(folder: Path, values: dict) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_there_are_configurations() -> None:
    names = {path.relative_to(shipped_configs()).as_posix() for path in CONFIGS}
    assert {
        "experiment/demo.yaml",
        "experiment/demo_full.yaml",
        "experiment/ms_to_tumour_real.yaml",
    } <= names
    assert not [p for p in shipped_configs().rglob("*") if p.is_file() and p not in CONFIGS]


def test_every_configuration_is_held_to_a_schema() -> None:
    assert {*EXPERIMENTS, *GENERATORS, *TRANSLATORS} == set(CONFIGS)


@pytest.mark.parametrize("path", TRANSLATORS, ids=lambda path: path.stem)
def test_every_translator_validates(path: Path) -> None:
    values = read_yaml(path)
    assert not find_faults(TranslationConfig, values, where="")
    for part in filter(None, [values["source"], values.get("other")]):
        assert not data_settings_faults(part, "settings")


@pytest.mark.parametrize("path", GENERATORS, ids=lambda path: path.stem)
def test_every_generator_validates(path: Path) -> None:
    values = read_yaml(path)
    assert values["kind"] in KINDS
    assert not find_faults(DataConfig, values, where="")
    assert not data_settings_faults(values, "settings")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_validates(path: Path) -> None:
    config = read_experiment(read_yaml(path), where=path.name)
    assert config.arms
    try:
        plan = load_plan(str(path))
    except DataError:
        used = [part for mix in config.sources.values() for part in mix] + [config.target]
        assert any(part.kind != "phantom" for part in used), "only real data may be absent"
        return
    assert set(plan.sources) == set(config.sources)
    for name, cohorts in {**plan.sources, **plan.scans}.items():
        if name not in plan.pretraining:
            refuse_own_people(cohorts, plan, where=name)
    assert len(plan.target.source) > max(config.protocol.few_shot.sizes)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_how_it_is_run_and_holds_nothing_that_no_arm_uses(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    command = re.fullmatch(r"# (tools/\w+|medseg experiment|medseg demo)( .*)?", first)
    assert command, first
    assert not command[1].startswith("tools/") or (ROOT / command[1]).is_file()
    named = re.search(r"medseg experiment ([\w/]+)", first)
    assert named is None or find_config(named[1]) == path
    config = read_experiment(read_yaml(path), where=path.name)
    arms = config.arms
    assert {name for arm in arms for name in arm.sources} == set(config.sources)
    assert {arm.scans for arm in arms if arm.scans} == set(config.scans)
    assert set(config.protocol.priors) <= {arm.method.prior for arm in arms}
    assert config.statements


def test_configurations_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    demo = shipped_configs() / "experiment" / "demo.yaml"
    assert {find_config(name) for name in ("experiment/demo", "demo.yaml", "demo")} == {demo}
    own = write(tmp_path, minimal())
    assert find_config(own) == Path(own)
    with pytest.raises(ConfigError, match="demo_full"):
        find_config("dmeo")


def test_every_catalogue_entry_is_reachable_from_the_schema() -> None:
    kinds = ExperimentConfig.__annotations__
    assert set(kinds["network"].__args__) == set(NETWORKS)
    for kind in SOURCES:
        values = minimal() | {"target": {"kind": kind, "settings": {"nope": 1}}}
        with pytest.raises(ConfigError, match=r"target.settings.nope is not a key .*allowed: \w+"):
            read_experiment(values, where="x")


def test_an_unknown_key_names_the_nearest_and_the_allowed_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        read_experiment(minimal() | {"protocl": {}}, where="mine.yaml")
    text = str(caught.value)
    assert "protocl is not a key, did you mean 'protocol'?" in text
    assert "allowed: arms, description, network, pretraining, protocol, scans, sources" in text


@pytest.mark.parametrize(
    ("path", "wrong", "right", "allowed"),
    [
        ("protocol", "sed", "seed", "members"),
        ("protocol.patch", "siz", "size", "batch_size"),
        ("protocol.few_shot", "repeat", "repeats", "test_subjects"),
        ("sources.ms.0", "knd", "kind", "note"),
        ("target", "regoins", "regions", "settings"),
        ("arms.1", "source", "sources", "method"),
        ("arms.1.method", "wise_shar", "wise_share", "l2sp_strength"),
        ("target.settings", "n_subject", "n_subjects", "disease"),
        ("sources.ms.0.settings", "spacing", "spacing_mm", "label_maps"),
    ],
)
def test_the_nearest_key_is_that_of_the_same_level(
    tmp_path: Path, path: str, wrong: str, right: str, allowed: str
) -> None:
    name = write(tmp_path, minimal())
    with pytest.raises(ConfigError) as caught:
        load_plan(name, [f"{path}.{wrong}=1"])
    text = str(caught.value)
    assert f"{path}.{wrong} is not a key, did you mean {right!r}?" in text
    assert allowed in text.split("(allowed: ")[1].split(")")[0].split(", ")


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    values = minimal()
    del values["title"]
    values["protocol"] = {"members": 0, "sampels": 3, "loss": {"dice": "much"}}
    values["sources"]["ms"][0]["settings"] = {"disease": "flu"}
    values["target"] = {"kind": "phantom", "settings": {"n_subject": 4}}
    with pytest.raises(ConfigError) as caught:
        load_plan(write(tmp_path, values))
    text = str(caught.value)
    for key in (
        "title must be given",
        "protocol.members",
        "protocol.sampels",
        "protocol.loss.dice",
        "sources.ms.0.settings.disease",
        "target.settings.n_subject",
    ):
        assert key in text
    assert "but it is 'much'" in text
    assert "ArgsKwargs" not in text


def test_overrides_reach_keys_and_list_items(tmp_path: Path) -> None:
    plan = load_plan(
        write(tmp_path, minimal()),
        [
            "protocol.seed=7",
            "protocol.few_shot.sizes=[1, 2]",
            "target.settings.n_subjects=5",
            "sources.ms.0.settings.n_subjects=4",
            "arms.1.method.method=wise",
            "protocol.patch.size=[16,16,16]",
            "description=two words",
        ],
    )
    assert plan.protocol.seed == 7
    assert plan.protocol.few_shot.sizes == (1, 2)
    assert plan.protocol.patch.size == (16, 16, 16)
    assert (len(plan.target.source), len(plan.sources["ms"][0].source)) == (5, 4)
    assert plan.arms[1].method.method == "wise"
    assert plan.description == "two words"
    assert plan.config["protocol"]["seed"] == 7, "the record holds what was run"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("protocol.seed", "key=value"),
        ("=3", "key=value"),
        ("protocol..seed=3", "key=value"),
        ("title.long=3", "below a value"),
        ("arms.9.sources=[ms]", "number below 2"),
        ("arms.x=3", "number below 2"),
        ("protocol.seed=[1", "YAML"),
        ("protocol.seed=one", "protocol.seed"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan(write(tmp_path, minimal()), [override])


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "a: [1\n", "just text", ""])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"x.yaml must"):
        load_plan(str(path))


def test_a_folder_needs_the_meaning_of_its_labels(tmp_path: Path) -> None:
    values = minimal()
    values["sources"]["mine"] = [{"kind": "folder", "settings": {"root": str(tmp_path)}}]
    with pytest.raises(ConfigError, match=r"sources.mine.0.regions must say which labels"):
        load_plan(write(tmp_path, values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("arms.1.sources=[mss]", "arms.1.sources must name some of"),
        ("arms.1.sources=[]", "arms.1.sources must name some of"),
        ("arms.1={method: {method: ri}}", r"'ri' on 'none' is arms.0 and arms.1: give one a name"),
        ("arms.1.method={method: anchored, prior: rbm}", r"arms.1.*normalised.* kind 'rbm'"),
        ("arms=[]", "arms"),
        ("protocol.regions.names=[core, hole]", "'hole'"),
        ("target.regions={lesion: [1]}", "protocol.regions.names"),
        ("protocol.patch.size=[32, 32]", "3 numbers"),
        ("network=unet_2d", "2 numbers"),
        ("sources.ms=[]", "sources.ms must name at least one"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan(write(tmp_path, minimal()), [change])


def test_an_anchored_arm_takes_normalised_priors_only_whatever_they_are_called() -> None:
    arms = [{"method": {"method": "anchored"}, "sources": ["ms"]}]
    for kind in PRIOR_KINDS:
        values = minimal() | {"arms": arms, "protocol": {"prior": {"kind": kind}}}
        if is_normalised(kind):
            read_experiment(values, where="x")
        else:
            with pytest.raises(ConfigError, match=f"normalised.*{kind!r}"):
                read_experiment(values, where="x")
    values["protocol"] = {"priors": {"mine": {"kind": "gan"}}}
    values["arms"] = [{"method": {"method": "anchored", "prior": "mine"}, "sources": ["ms"]}]
    with pytest.raises(ConfigError, match="'gan'"):
        read_experiment(values, where="x")


def test_an_arm_like_another_is_told_apart_by_a_name(tmp_path: Path) -> None:
    values = minimal()
    values["arms"].append(values["arms"][1] | {"name": "again"})
    assert [arm.label for arm in load_plan(write(tmp_path, values)).arms] == ["ri", "pr", "again"]


def test_absent_data_are_a_fault_of_the_data(tmp_path: Path) -> None:
    values = minimal() | {"target": {"kind": "brats", "settings": {"root": str(tmp_path / "no")}}}
    with pytest.raises(DataError, match="no"):
        load_plan(write(tmp_path, values))


def test_an_arm_names_its_prior(tmp_path: Path) -> None:
    values = minimal()
    source = next(iter(values["sources"]))
    values["arms"] = [
        {"method": {"method": "dwp", "prior": name}, "sources": [source]}
        for name in ("rbm", "mine")
    ]
    with pytest.raises(ConfigError, match=r"arms.1.method.prior: .* or of the kinds .* 'mine'"):
        load_plan(write(tmp_path, values))
    change = "protocol.priors.mine={kind: gmm, grouping: group, model: {components: 2}}"
    plan = load_plan(write(tmp_path, values), [change])
    assert plan.priors_of(source) == ("rbm", "mine")
    assert [arm.method.label for arm in plan.arms] == ["dwp_rbm", "dwp_mine"]
    kinds = [plan.protocol.prior_named(name).kind for name in ("rbm", "mine", None)]
    assert kinds == ["rbm", "gmm", plan.protocol.prior.kind]
    with pytest.raises(ConfigError, match="components"):
        load_plan(write(tmp_path, values), [change.replace("2", "0")])


def test_methods_take_settings() -> None:
    method = load_arm("dwp", ["init=prior", "elbo.kl_fraction=0.5", "wise_share=0.25"]).method
    assert (method.label, method.elbo.kl_fraction, method.wise_share) == (
        "dwp_prior_back0.25",
        0.5,
        0.25,
    )
    with pytest.raises(ConfigError, match="'elbo'"):
        load_arm("dwp", ["elboo=1"])
    with pytest.raises(ConfigError, match="method"):
        load_arm("magic")


def test_one_key_of_a_method_leaves_the_others() -> None:
    usual = MethodSettings(method="gaussian")
    found = load_arm("gaussian", ["elbo.beta=0.1", "variational.relative_std=0.2"]).method
    assert found.elbo == replace(usual.elbo, beta=0.1)
    assert found.variational == replace(usual.variational, relative_std=0.2)
    assert load_arm("gaussian", ["variational.estimator=local"]).method.variational == replace(
        usual.variational, estimator="local"
    )


def test_what_is_taken_where_nothing_is_named_is_what_won() -> None:
    path = ROOT / "configs" / "experiment" / "semireal_sixth.yaml"
    config = read_experiment(read_yaml(path), where=path.name)
    won = next(arm for arm in config.arms if arm.label == "gaussian_light_path_x3_refined")
    assert load_arm("gaussian", ALL_THE_WAY).method == won.method
    assert won.refine == RefinementSettings()
