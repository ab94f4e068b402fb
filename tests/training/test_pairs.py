"""Forms of a pair."""

from functools import partial

from ranking.training.pairs import collate_pairs


def test_collate_pairs_masks_by_position():
    """Padding may equal EOS inside a completion; only positions decide."""
    rows = [
        {"pair": 4, "chosen_ids": [0, 7, 1, 1], "chosen_start": 2, "rejected_ids": [0, 7, 9],
         "rejected_start": 2, "ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
    ]  # fmt: skip
    batch = partial(collate_pairs, pad_token_id=1)(rows)
    assert batch["input_ids"].tolist() == [[0, 7, 1, 1], [0, 7, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch["ref_chosen_logps"].tolist() == [-1.5] and batch["pair"].tolist() == [4]
