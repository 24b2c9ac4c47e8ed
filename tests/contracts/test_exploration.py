import json

import msgspec
import pytest

from mtf.contracts.exploration import Dimension, ExplorationDocument, read_exploration, write_exploration
from mtf.errors import InputError, IntegrityError


@pytest.fixture
def document():
    seen = Dimension(move=0.1, outward=0.2, slope=-0.3, slope_se=0.04, before=0.15, rule="keep")
    return ExplorationDocument(
        policy_sha="p", half_width=(0.15, 0.0), budget=0.03, expected_loss=0.01, loss_se=0.002, evidence=(seen, seen), reason="r"
    )


def test_it_comes_back_as_written_named_by_its_hash(document, tmp_path):
    written = write_exploration(document, tmp_path / "deep" / "box.json")
    assert read_exploration(tmp_path / "deep" / "box.json") == written
    assert len(written.sha) == 64
    assert msgspec.structs.replace(written, sha="") == document
    # naming again, or what it was called before, changes nothing
    assert written.named() == written
    assert msgspec.structs.replace(document, sha="other").named() == written


@pytest.mark.parametrize("change", [{"half_width": [0.15, 0.1]}, {"policy_sha": "q"}, {"reason": "better"}, {"sha": "0" * 64}])
def test_a_change_after_writing_is_found(document, tmp_path, change):
    path = tmp_path / "box.json"
    write_exploration(document, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(IntegrityError, match=r"box\.json was changed"):
        read_exploration(path)


def test_another_file_and_none_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="does not exist; give the file that `mtf explore refresh"):
        read_exploration(tmp_path / "none.json")
    (tmp_path / "spec.json").write_text('{"half_width": 3}')
    with pytest.raises(InputError, match=r"spec\.json is no exploration\.json"):
        read_exploration(tmp_path / "spec.json")
