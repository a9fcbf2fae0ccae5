"""Where a model lies, and what the error says when it is nowhere."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import errors
from models.folders import CPU, assert_same_weights, http, hub_answer, spec_of

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.files import model_hashes
from pivotune.pipeline.models.find import find_model
from pivotune.pipeline.models.load import load_model

HUB = "someone/some-model"


class Hub:
    """Stands in for the hub: one model, and a note of what was asked for."""

    def __init__(self, folder, error=None):
        self.folder, self.error, self.asked = folder, error, []

    def model_info(self, name, **options):
        self.asked.append(("info", name, options["revision"]))
        if self.error:
            raise self.error

    def hf_hub_download(self, name, file, **options):
        self.asked.append((file, name, options["local_files_only"]))
        path = self.folder / file
        if not path.exists():
            raise errors.LocalEntryNotFoundError("not there")
        return str(path)

    def download(self, name, **options):
        self.asked.append(("download", name, options))
        return str(self.folder)


def fake_hub(monkeypatch, folder, error=None):
    hub = Hub(folder, error)
    monkeypatch.setattr(huggingface_hub, "model_info", hub.model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    monkeypatch.setattr(DiffusionPipeline, "download", hub.download)
    return hub


def test_a_hub_model_is_downloaded_and_its_snapshot_hashed(monkeypatch, sd1_folder, originals):
    hub = fake_hub(monkeypatch, sd1_folder)
    model = load_model(spec_of(HUB, revision="main"), CPU)
    assert_same_weights(model.pipe, originals["sd1"][0])
    assert model.path == sd1_folder
    assert "unet/diffusion_pytorch_model.safetensors" in model_hashes(model.path)
    *before, (_, _, options) = hub.asked
    assert before == [("info", HUB, "main"), ("model_index.json", HUB, False)]
    assert options == {
        "revision": "main", "variant": None, "local_files_only": False, "safety_checker": None,
        "feature_extractor": None, "image_encoder": None,
    }  # fmt: skip


def test_without_a_network_the_local_cache_is_used(monkeypatch, sd1_folder):
    hub = fake_hub(monkeypatch, sd1_folder, errors.OfflineModeIsEnabled("offline"))
    assert find_model(spec_of(HUB)) == sd1_folder
    assert hub.asked[-1][2]["local_files_only"] is True


def test_a_hub_model_of_a_foreign_kind_is_not_downloaded(monkeypatch, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "AuraFlowPipeline"}', "utf-8")
    hub = fake_hub(monkeypatch, tmp_path)
    with pytest.raises(StageError, match="is a AuraFlowPipeline, which is not supported; supported: "):
        find_model(spec_of(HUB))
    assert [what for what, *_ in hub.asked] == ["info", "model_index.json"]


@pytest.mark.parametrize(
    ("error", "embeddings"),
    [
        (errors.OfflineModeIsEnabled("offline"), "the hub cannot be reached"),
        (http.ConnectTimeout("too slow"), "the hub cannot be reached"),
        (http.ConnectError("no route"), "the hub cannot be reached"),
        (hub_answer(errors.RepositoryNotFoundError, 404), "the hub has no such model"),
        (hub_answer(errors.GatedRepoError, 403), "its terms must be accepted"),
        (hub_answer(errors.RevisionNotFoundError, 404), "the hub has no revision 'v9'"),
        (hub_answer(errors.HfHubHTTPError, 500), "the hub cannot be reached"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch, tmp_path, error, embeddings):
    fake_hub(monkeypatch, tmp_path, error)
    with pytest.raises(StageError, match=f"model.base = '{HUB}' cannot be loaded: .*{embeddings}") as raised:
        find_model(spec_of(HUB, revision="v9"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_id_without_a_network_is_an_error_of_one_line(tmp_path, environment):
    """In a process of its own, since the hub's client reads the environment when it is imported."""
    code = (
        "from pivotune.pipeline.models.find import find_model\n"
        "from pivotune.pipeline.recipe.model import ModelSpec\n"
        f"try: find_model(ModelSpec({HUB!r}, 'sd1', 'float32', None, None, None))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HF_HOME": str(tmp_path)} | environment,
        timeout=100, check=True,
    )  # fmt: skip
    (message,) = done.stdout.splitlines()
    assert message.startswith(
        f"StageError model.base = '{HUB}' cannot be loaded: it is not complete in the local cache"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("base", ["/no/such/model", "./nowhere", "some/model.safetensors", "plain", "a/b/c"])
def test_an_invalid_base_is_an_error_without_network_access(base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    hub = fake_hub(monkeypatch, tmp_path)
    with pytest.raises(StageError, match="no such file or folder, and not a hub id"):
        find_model(spec_of(base))
    assert hub.asked == []


def test_paths_are_found(tmp_path):
    assert find_model(spec_of(tmp_path)) == tmp_path
    assert find_model(spec_of("micro")).parts[-2:] == ("micro", "model")
    assert isinstance(find_model(spec_of("micro")), Path)


def test_a_hub_id_is_not_taken_for_a_folder_of_the_working_directory(monkeypatch, sd1_folder, tmp_path):
    """What a recipe means does not depend on where the command is started."""
    hub = fake_hub(monkeypatch, sd1_folder)
    (tmp_path / HUB).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model(spec_of(HUB)) == sd1_folder
    assert hub.asked
