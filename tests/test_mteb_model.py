"""A checkpoint passes the tasks of generated videos that `mteb` ships."""

import pytest
import torch

from lib import Config
from tasks.retrieval.model import RetrievalModel
from tests.conftest import demo_network
from violet import load

mteb = pytest.importorskip("mteb", reason="mteb is not installed (pip install mteb)")


@pytest.mark.parametrize(("vtc", "number"), [(True, 7), (False, 4)])
def test_the_tasks_of_generated_videos_pass(tmp_path, bert_folder, vtc, number):
    from mteb.mocks.mock_run import get_compatible_mock_tasks

    from bench.mteb_model import MtebModel

    config = Config(
        type="retrieval",
        **demo_network(bert_folder),
        size_img=32,
        size_frame=2,
        size_txt=10,
        device="cpu",
        vtc=vtc,
    )
    torch.save(RetrievalModel.from_config(config).state_dict(), tmp_path / "model.pt")
    (tmp_path / "args.json").write_text(config.to_json())
    model = MtebModel(load(tmp_path / "model.pt"))
    tasks = [task for task in get_compatible_mock_tasks(model) if "video" in task.metadata.modalities]
    results = mteb.evaluate(model, tasks, cache=None, raise_error=True, show_progress_bar=False)
    assert len(list(results)) == len(tasks) == number
