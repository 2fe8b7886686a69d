"""Records as JSON."""

from nanogpt_lite.tracking.records import EvalRecord


def test_json_of_a_record_starts_with_its_kind():
    record = EvalRecord(step=3, train_loss=2.0, val_loss=1.5, best_val_loss=1.5, is_best=True, seconds=0.5)
    assert list(record.to_json().items())[:2] == [("kind", "eval"), ("step", 3)]
    assert record.to_json()["val_loss"] == 1.5
