"""The page of results: against the files it is made of, and in a real browser."""

import base64
import gzip
import json
import math
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import browser, needs_browser, requests_of, show
from result_rows import evaluated_pairs, idealized_rows

from ranking.metrics.accuracy import summarize_dataset
from ranking.metrics.comparison import compare_models
from ranking.metrics.rewards import reward_pairs, summarize_rewards
from ranking.metrics.win_rate import summarize_win_rate
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from ranking.reports.page import page_html, write_page
from ranking.reports.page_files import read_result_file

SCRIPT = "<script>alert(1)</script>"
NASTY = [
    SCRIPT, "</script><b>bold", "<!-- comment", "{{ braces }} $dollar ${x}", "NUL \0 in it",
    "half \ud83d of a pair", "&<img src=x onerror=\"document.title='broken'\">",
    "\u2028 and \u202e", "'quotes\" &lt; &amp;lt;",
]  # fmt: skip


class Tables(HTMLParser):
    """The cells of each table, and the sort keys of its lines."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.keys, self.titles, self.scripts = [], [], [], []
        self.inside = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self.tables.append([])
            self.keys.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.keys[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.keys[-1][-1].append(attributes.get("data-order"))
            if tag == "th":
                self.titles.append(attributes.get("title"))
        elif tag == "script":
            self.scripts.append(attributes)
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def number_of(self, *columns):
        """Which table has all of these columns."""
        (number,) = [k for k, t in enumerate(self.tables) if t and set(columns) <= set(t[0])]
        return number

    def with_columns(self, *columns):
        return self.tables[self.number_of(*columns)]

    def handle_data(self, data):
        if self.inside in ("th", "td"):
            self.tables[-1][-1][-1] += data


def embedded(html):
    start = html.index('id="data">') + len('id="data">')
    return json.loads(gzip.decompress(base64.b64decode(html[start : html.index("<", start)])))


def scored(number, logps, ranks, *, texts=None, prompt=None, dataset="d", model="m", **more):
    """A line of an examples file."""
    texts = texts or [f"reply {number} {k}" for k in range(len(ranks))]
    return {
        "id": str(number), "prompt_id": str(number), "dataset": dataset, "dataset_config": None,
        "split": "test", "row": number, "model": model, "config_hash": f"hash of {model}",
        "prompt": prompt or f"question {number}", "messages": None, "groups": {}, "ranks": ranks,
        "votes": None, **more,
        "completions": [
            {"text": text, "separator": " ", "logp": logp, "n_tokens": 2 + k, "n_chars": len(text),
             "n_bytes": 1, "truncated": False}
            for k, (text, logp) in enumerate(zip(texts, logps))
        ],
    }  # fmt: skip


def write_run(folder, name, records, reference=None):
    """What the ranking script leaves of a run: summary, examples, rewards. Returns the summary."""
    common = {
        "model": records[0]["model"], "revision": None, "dataset_config": None,
        "dataset_split": "test", "dataset_commit": "c0ffee" * 6, "include_ties": False, "seed": 3,
        "versions": {"torch": "2.0"}, "config_hash": records[0]["config_hash"],
        "dropped": {"too long": 2}, "joined_by": {" ": 2 * len(records)}, "dtype": "float32",
        "device": "cpu", "path": "segments", "chat_template": False, "add_eos": True,
        "sample_size": None,
    }  # fmt: skip
    rows = []
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        own = [record for record in records if record["dataset"] == dataset]
        columns = {**common, "dataset_name": dataset}
        rows += summarize_dataset(own, columns, False, 0)
        if reference is not None:
            before = [record for record in reference if record["dataset"] == dataset]
            pairs = list(reward_pairs(list(zip(own, before)), 0.5))
            sizes = [len(record["ranks"]) for record in own]
            columns |= {"beta": 0.5, "reference_model": reference[0]["model"]}
            rows += summarize_rewards(pairs, sizes, columns, None, 0)
    summary = folder / f"{name}.jsonl"
    write_json_lines(summary, rows)
    write_json_lines(folder / f"{name}.examples.jsonl", records)
    if reference is not None:
        pairs = reward_pairs(list(zip(records, reference)), 0.5)
        write_json_lines(folder / f"{name}.rewards.jsonl", pairs)
    return summary


def page_of(*summaries, **settings):
    return page_html([read_result_file(summary) for summary in summaries], **settings)


def few_records(model="m", seed=0):
    """24 examples, of two datasets and of groups; two are lists of three, one of them tied."""
    draw = random.Random(seed)
    records = [
        scored(k, [-draw.uniform(1, 30), -draw.uniform(1, 30)], [1, 2] if k % 3 else [2, 1],
               dataset="ab"[k % 2], model=model, groups={"domain": ("chat", "code", "maths")[k % 3]})
        for k in range(22)
    ]  # fmt: skip
    records.append(scored(22, [-1.0, -2.0, -3.0], [3, 1, 2], dataset="a", model=model))
    records.append(scored(23, [-1.0, None, -3.0], [1, 2, 2], dataset="a", model=model))
    return records


def test_the_result_table_is_that_of_the_summaries(tmp_path):
    runs = {m: write_run(tmp_path, m, few_records(m, seed)) for seed, m in enumerate(("m1", "m2"))}
    found = Tables(page_of(*runs.values()))
    table = found.with_columns("R̃ (per token)", "group")
    lines = {tuple(line[:3]): line[3:] for line in table[1:]}

    def cell(entry, key):
        low, high = (100 * bound for bound in entry["wilson_95"])
        return f"{100 * entry[key]:.1f} [{low:.1f}, {high:.1f}]"

    n_checked = 0
    for model, summary in runs.items():
        rows = [row for row in read_json_lines(summary) if row["distance_metric"] == "acc"]
        for row in rows:
            column = 2 + (row["calib_property"] == "ranking_non-length-normalized")
            line = lines[model, f"{row['dataset_name']} (test), EOS scored", ""]
            assert line[:2] == [str(row["n"]), f"{100 * row['chance']:.1f}"]
            assert line[column] == cell(row, "distance_metric_value_mean")
            for entry in row["by_group"]:
                name = f"domain: {entry['group'] or '–'}"
                own = lines[model, f"{row['dataset_name']} (test), EOS scored", name]
                assert own[0] == str(entry["n"]) and own[column] == cell(entry, "value")
                n_checked += 1
    assert n_checked == 2 * 2 * (3 + 4)
    assert len(lines) == 2 * (2 + 4 + 5)  # datasets, groups, means over groups


def test_cells_of_numbers_are_sorted_as_numbers(tmp_path):
    found = Tables(page_of(write_run(tmp_path, "run", few_records())))
    number = found.number_of("R̃ (per token)", "group")
    for cells, keys in zip(found.tables[number][1:], found.keys[number][1:]):
        assert keys[:3] == [None] * 3
        for cell, key in zip(cells[3:], keys[3:]):
            assert key == ("" if cell in ("", "–") else cell.split()[0])


def test_how_it_was_scored_and_what_is_not_there(tmp_path):
    html = page_of(write_run(tmp_path, "run", few_records()))
    text = " ".join(cell for table in Tables(html).tables for line in table for cell in line)
    for said in ("float32, cpu, segments", "chat template: no, EOS scored: yes", "c0ffeec0ffee",
                 "all, seed 3", "too long: 2", '" " (48)'):  # fmt: skip
        assert said in text, said
    assert "torch 2.0 (run.jsonl)" in html
    assert "no reference was scored" in html and "no picture (run.png" in html
    (tmp_path / "run.examples.jsonl").unlink()
    html = page_of(tmp_path / "run.jsonl")
    assert "no run.examples.jsonl: no pairs are shown: run.jsonl" in html
    assert 'id="pairs"' not in html and embedded(html)["pairs"] == []


def test_the_table_of_data_counts_examples(tmp_path):
    """Also where rows of correlations (of one list) and of rewards (of pairs) follow."""
    for reference in (None, few_records("r", seed=5)):
        records = few_records("p")
        for record in records[:3]:
            record["completions"][0]["truncated"] = True
        table = Tables(page_of(write_run(tmp_path, "run", records, reference)))
        columns, *lines = table.with_columns("data commit")
        shown = [dict(zip(columns, line)) for line in lines]
        assert [line["n"] for line in shown] == ["13", "11"]
        assert [line["prompts cut"] for line in shown] == ["2", "1"]


def test_examples_of_another_run_are_not_shown(tmp_path):
    summary = write_run(tmp_path, "run", few_records())
    others = [{**record, "config_hash": "another"} for record in few_records()]
    write_json_lines(tmp_path / "run.examples.jsonl", others)
    assert "run.examples.jsonl is of another run" in page_of(summary)


def test_an_examples_file_that_rows_name_is_found(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    summary = write_run(tmp_path, "run", few_records())
    moved = tmp_path / "elsewhere" / "kept.examples.jsonl"
    (tmp_path / "run.examples.jsonl").rename(moved)
    rows = [{**row, "examples_file": str(moved)} for row in read_json_lines(summary)]
    write_json_lines(summary, rows)
    assert len(embedded(page_of(summary))["examples"]) == 24


def test_an_examples_file_that_rows_name_goes_before_one_of_the_name(tmp_path):
    """NAME.examples.jsonl is of a run that was overwritten by one that read another file."""
    stale = few_records("other")
    summary = write_run(tmp_path, "run", few_records()[:5])
    (tmp_path / "run.examples.jsonl").rename(tmp_path / "kept.examples.jsonl")
    write_json_lines(tmp_path / "run.examples.jsonl", stale)
    rows = read_json_lines(summary)
    write_json_lines(summary, [{**row, "examples_file": "kept.examples.jsonl"} for row in rows])
    html = page_of(summary)
    assert len(embedded(html)["examples"]) == 5 and "is of another run" not in html


def test_rewards_that_are_gone_are_not_said_to_have_never_been(tmp_path):
    summary = write_run(tmp_path, "run", few_records("p"), few_records("r", seed=5))
    (tmp_path / "run.rewards.jsonl").unlink()
    html = page_of(summary)
    assert "no NAME.rewards.jsonl: pairs are shown without rewards" in html
    assert "no reference was scored" not in html


def test_pairs_are_those_of_the_examples_file(tmp_path):
    records = few_records()
    data = embedded(page_of(write_run(tmp_path, "run", records)))
    expected = []
    for record in records:
        for w, winner in enumerate(record["completions"]):
            for l, loser in enumerate(record["completions"]):  # noqa: E741
                if record["ranks"][w] < record["ranks"][l]:
                    expected.append((record, winner, loser, w, l))
    assert len(data["pairs"]) == len(expected) == 22 + 3 + 2
    key = lambda pair: (pair["row"], pair["chosen"]["place"], pair["rejected"]["place"])  # noqa: E731
    pairs = [{**pair, **data["examples"][pair["example"]]["columns"]} for pair in data["pairs"]]
    expected.sort(key=lambda found: (found[0]["row"], *found[3:]))
    for pair, (record, winner, loser, w, l) in zip(sorted(pairs, key=key), expected):  # noqa: E741
        example = data["examples"][pair["example"]]
        assert example["turns"] == [["prompt", record["prompt"]]]
        assert example["texts"][w] == winner["text"] and example["texts"][l] == loser["text"]
        assert pair["model"] == "m, EOS scored" and pair["dataset"] == f"{record['dataset']} (test)"
        assert pair.get("groups") == (
            [f"domain: {record['groups']['domain']}"] if record["groups"] else None
        )
        assert pair["chosen"]["tokens"] - pair["rejected"]["tokens"] == pair["length_difference"]
        assert pair["chosen"]["rank"] == record["ranks"][w]
        if None in (winner["logp"], loser["logp"]):
            assert pair["ranked"] == pair["ranked_per_token"] == "wrong" and "logratio" not in pair
            continue
        ratio = winner["logp"] - loser["logp"]
        mean = winner["logp"] / winner["n_tokens"] - loser["logp"] / loser["n_tokens"]
        assert pair["logratio"] == pytest.approx(ratio, abs=1e-3)
        assert pair["logratio_per_token"] == pytest.approx(mean, abs=1e-4)
        assert pair["ranked"] == ("right" if ratio >= 0 else "wrong")
        assert pair["ranked_per_token"] == ("right" if mean >= 0 else "wrong")


def test_rewards_and_the_groups_of_rankings(tmp_path):
    records, reference = few_records("policy"), few_records("reference", seed=5)
    data = embedded(page_of(write_run(tmp_path, "run", records, reference)))
    by_row = {record["row"]: (record, before) for record, before in zip(records, reference)}
    seen = set()
    for pair in data["pairs"]:
        record, before = by_row[data["examples"][pair["example"]]["columns"]["row"]]
        sides = [pair["chosen"]["place"], pair["rejected"]["place"]]
        now = [record["completions"][k]["logp"] for k in sides]
        then = [before["completions"][k]["logp"] for k in sides]
        if None in now + then:
            continue
        names = ["correct" if logps[0] >= logps[1] else "incorrect" for logps in (then, now)]
        assert pair["group"] == " → ".join(names)
        seen.add(pair["group"])
        rewards = [0.5 * (after - earlier) for after, earlier in zip(now, then)]
        assert pair["chosen"]["reward"] == pytest.approx(rewards[0], abs=1e-4)
        assert pair["rejected"]["change"] == pytest.approx(now[1] - then[1], abs=1e-3)
        assert pair["reward_margin"] == pytest.approx(rewards[0] - rewards[1], abs=1e-4)
    assert len(seen) == 4


def test_votes_and_what_idealized_runs_say(tmp_path):
    """Of each configuration of a dataset, where an example is in two."""
    record = scored(1, [-5.0, -3.0], [2, 1], votes={"0,1": [1.0, 3.0]})
    summary = write_run(tmp_path, "run", [record, {**record, "dataset_config": "hard"}])
    rows = [{**row, "model": "m", "reference_model": "before", "dataset_split": "test"}
            for row in idealized_rows()]  # fmt: skip
    write_json_lines(tmp_path / "ideal.jsonl", rows)
    kinds = {"ref_logratio": -1.0, "critical_beta": 0.25, "observed_correct": True}
    write_json_lines(tmp_path / "ideal.pairs.jsonl", [
        {"id": "1", "dataset": "d", "dataset_config": config, "split": "test", "winner": 1,
         "loser": 0, "alpha": alpha, "tied": False, "non-length-normalized": kinds,
         "length-normalized": kinds}
        for config, alpha in ((None, 0.75), ("hard", 0.6))
    ])  # fmt: skip
    html = page_of(summary, tmp_path / "ideal.jsonl")
    pair, hard = embedded(html)["pairs"]
    assert (pair["alpha"], hard["alpha"], pair["critical_beta"]) == (0.75, 0.6, 0.25)
    assert pair["group"] == "incorrect → correct"
    assert (pair["chosen"]["votes"], pair["rejected"]["votes"]) == (3.0, 1.0)
    line = Tables(html).with_columns("reference → model")[1]
    assert line[2:7] == ["7", "40.0", "50.0", "75.0", "100.0"]


def test_idealized_runs_show_the_examples_that_they_read(tmp_path):
    """Once, where the summary of the ranking script is given too; none: it is said."""
    record = scored(1, [-5.0, -3.0], [2, 1])
    summary = write_run(tmp_path, "run", [record])
    ideal = tmp_path / "ideal.jsonl"
    rows = [{**row, "model": "m", "dataset_split": "test"} for row in idealized_rows()]
    write_json_lines(ideal, rows)
    html = page_of(ideal)
    assert 'id="pairs"' not in html
    assert "no examples file of its model is named in it, or lies beside it" in html
    write_json_lines(ideal, [{**row, "examples_file": "run.examples.jsonl"} for row in rows])
    assert len(embedded(page_of(ideal))["pairs"]) == 1
    for files in ((summary, ideal), (ideal, summary)):
        (pair,) = embedded(page_of(*files))["pairs"]
        assert pair["model"] == "m, EOS scored"
    write_json_lines(ideal, [{**row, "examples_file": "gone.jsonl"} for row in rows])
    assert "no gone.jsonl: no pairs are shown" in page_of(ideal)


def test_baselines_and_reward_accuracy_where_there_are(tmp_path):
    records = few_records()[:22]  # pairs: at equal length is of these
    summary = write_run(tmp_path, "run", records)
    table = Tables(page_of(summary)).with_columns("group")
    assert "reward accuracy" not in table[0]
    rows = read_json_lines(summary)
    found = [r for r in rows if r["distance_metric"] == "acc" and r["dataset_name"] == "a"]
    line = dict(zip(table[0], table[1]))
    for baseline in ("shorter", "longer"):
        assert line[baseline] == f"{100 * found[0]['baselines'][baseline]:.1f}"
    for name, row in zip(("R̃ at equal length", "R at equal length"), found):
        value = row["at_equal_length"]
        assert line[name].split()[0] == ("–" if value is None else f"{100 * value:.1f}")
    summary = write_run(tmp_path, "tuned", records, few_records("before", seed=5)[:22])
    html = page_of(summary)
    table = Tables(html).with_columns("group", "reward accuracy")
    lines = {tuple(cells[1:3]): dict(zip(table[0], cells)) for cells in table[1:]}
    rewards = [r for r in read_json_lines(summary) if r["distance_metric"] == "reward_acc"]
    assert len(rewards) == 4
    for row in rewards:
        per_token = " per token" * (row["calib_property"] == "ranking_length-normalized")
        label = f"{row['dataset_name']} (test), EOS scored"
        entries = [(row["distance_metric_value_mean"], "")]
        entries += [(e["value"], f"domain: {e['group']}") for e in row["by_group"]]
        for value, group in entries:
            cell = lines[label, group][f"reward accuracy{per_token}"]
            assert cell.startswith(f"{100 * value:.1f} [")
    n_lines = len(rewards) + sum(len(row["by_group"]) for row in rewards)
    assert len(Tables(html).with_columns("only reward")) == n_lines + 1


def test_comparisons_are_tables(tmp_path):
    runs = {m: few_records(m, seed) for seed, m in enumerate(("m1", "m2"))}
    summary = write_run(tmp_path, "run", runs["m1"])
    rows = compare_models(list(runs.items()), 0)
    write_json_lines(tmp_path / "run.compare.jsonl", rows)
    found = Tables(page_of(summary))
    assert [line[2] for line in found.with_columns("", "model")[1:]] == ["m1", "m2"] * 2
    test = next(
        r["tests"][0] for r in rows if r["calib_property"] == "ranking_non-length-normalized"
    )
    line = found.with_columns("p (Holm)")[1]
    assert line[7:9] == [str(test["only_second_right"]), str(test["only_first_right"])]
    for table in (found.with_columns("", "model"), found.with_columns("p (Holm)")):
        assert all("" not in line for line in table[1:])  # sorted, a line is by itself


def test_texts_are_text(tmp_path):
    """In the file: nothing of them is HTML. In the browser: below."""
    records = [
        scored(k, [-1.0, -2.0], [1, 2], texts=[text, NASTY[k - 1]], prompt=text, dataset=NASTY[0],
               model=NASTY[0], groups={NASTY[1]: NASTY[k % 3]})
        for k, text in enumerate(NASTY)
    ]  # fmt: skip
    path = tmp_path / "page.html"
    write_page([read_result_file(write_run(tmp_path, "run", records))], path)
    html = path.read_text("utf-8")
    scripts = Tables(html).scripts
    assert [s.get("id", s.get("type")) for s in scripts] == ["library", "data", "module"]
    assert SCRIPT not in html and "\0" not in html and "&lt;script&gt;alert(1)" in html
    data = embedded(html)
    assert [example["texts"][0] for example in data["examples"]] == NASTY
    assert [example["turns"][0][1] for example in data["examples"]] == NASTY


def test_a_dialogue_is_turns(tmp_path):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]},
        {"role": "user", "content": [{"type": "text", "text": "and this?"}]},
    ]
    text = "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant:"
    records = [
        scored(1, [-1.0, -2.0], [1, 2], messages=messages),
        scored(2, [-1.0, -2.0], [1, 2], prompt=text),
    ]
    example, other = embedded(page_of(write_run(tmp_path, "run", records)))["examples"]
    assert other["turns"] == [["user", "Hello"], ["assistant", "Yes?"], ["user", "Bye"]]
    assert example["turns"][0] == ["system", "be brief"]
    assert example["turns"][1] == ["assistant", '[{"name": "look"}]']
    assert "and this?" in example["turns"][2][1]


def hh_like(n, seed=0):
    """Examples as long as those of HH-RLHF, of words that are as frequent as those of English."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(8000)])
    share = 1 / np.arange(2, len(words) + 2)
    said = words[rng.choice(len(words), (n, 190), p=share / share.sum())]
    return [
        scored(k, rng.uniform(-200, -20, 2).tolist(), [1, 2], dataset=f"hh{k % 5}",
               prompt=" ".join(own[:100]), texts=[" ".join(own[100:145]), " ".join(own[145:])])
        for k, own in enumerate(said)
    ]  # fmt: skip


@pytest.mark.slow
def test_five_thousand_examples_are_less_than_five_megabytes(tmp_path):
    records = hh_like(5000)
    html = page_of(write_run(tmp_path, "run", records, hh_like(5000, seed=1)))
    assert len(html.encode()) < 5_000_000
    assert len(embedded(html)["examples"]) == 5000
    assert "5000 pairs of 5000 examples" in html


def test_larger_results_are_drawn_and_said(tmp_path):
    summary = write_run(tmp_path, "run", hh_like(600))
    everything = len(page_of(summary).encode())
    most = everything - 120_000
    html = page_of(summary, most_bytes=most)
    data = embedded(html)
    n = len(data["examples"])
    assert most - 120_000 < len(html.encode()) <= most and 0 < n < 600
    assert f"{n} of 600 pairs, of {n} of 600 examples, drawn at random (seed 0)" in html
    assert html == page_of(summary, most_bytes=most)
    rows = [example["columns"]["row"] for example in data["examples"]]
    assert max(rows) > 500 and min(rows) < 100  # not the first ones
    for pair in data["pairs"]:
        assert data["examples"][pair["example"]]["texts"]


def test_pictures_are_inside(tmp_path):
    from matplotlib.figure import Figure

    runs = [write_run(tmp_path, m, few_records(m)) for m in ("m1", "m2")]
    Figure().savefig(tmp_path / "m1.png")
    html = page_of(*runs)
    assert html.count('src="data:image/png;base64,') == 2  # that of m1, and one of both models
    assert 'alt="m1.png"' in html and "Ranking accuracy of all models" in html


def test_dynamics_are_a_table(tmp_path):
    write_json_lines(tmp_path / "ranking_dynamics.jsonl", evaluated_pairs())
    html = page_of(tmp_path / "ranking_dynamics.jsonl")
    table = Tables(html).with_columns("flipped to correct")
    assert [line[1] for line in table[1:4]] == ["0", "5 (lowest)", "10"]


def test_win_rates_of_each_judge_are_a_table_of_their_own(tmp_path):
    files = []
    for number, judge in enumerate(
        ("openai:gpt-4o", "alpaca_eval:alpaca_eval_gpt4", "openai:gpt-4o")
    ):
        judged = [
            {"prompt_id": str(k), "win": 1.0 * (k < number + 1), "policy_response": "a",
             "other_response": "b"} for k in range(4)
        ]  # fmt: skip
        common = {
            "model": f"m{number}", "against": "sft", "judge": judge, "dataset_name": "d",
            "dataset_split": "test", "dataset_commit": None, "n_unanswered": 0, "dropped": {},
            "joined_by": None, "seed": 0, "generation": {}, "versions": {},
        }  # fmt: skip
        files.append(tmp_path / f"{number}.jsonl")
        write_json_lines(files[-1], [summarize_win_rate(judged, common, 0)])
    html = page_of(*files)
    for judge in ("openai:gpt-4o", "alpaca_eval:alpaca_eval_gpt4"):
        assert html.count(f"Win rate against sft, by {judge}, %") == 1
    shown = [t for t in Tables(html).tables if "win rate [95 %]" in t[0]]
    assert [[line[0] for line in table[1:]] for table in shown] == [["m0", "m2"], ["m1"]]


def test_displacement_of_training_says_part_and_step_in_each_line(tmp_path):
    write_json_lines(tmp_path / "ranking_dynamics.jsonl", evaluated_pairs())
    table = Tables(page_of(tmp_path / "ranking_dynamics.jsonl")).with_columns("part of the data")
    assert table[0][:4] == ["part of the data", "ranking group", "pairs", "step"]
    assert [line[:4] for line in table[1:4]] == [
        ["train", "", "4", "5 (lowest)"],
        ["train", "correct → correct", "1", "5 (lowest)"],
        ["train", "correct → incorrect", "1", "5 (lowest)"],
    ]


def test_displacement_by_groups_of_the_data_and_of_rankings(tmp_path):
    """Each share and change is a column, with its interval, and is that of the pairs."""
    summary = write_run(tmp_path, "run", few_records("p"), few_records("r", seed=5))
    found = Tables(page_of(summary))
    number = found.number_of("chosen fell", "group")
    columns, *table = found.tables[number]
    assert not [column for column in columns if "/" in column]
    lines = {tuple(line[:3]): dict(zip(columns, line)) for line in table}
    pairs = [
        p for p in read_json_lines(tmp_path / "run.rewards.jsonl") if p["chosen_change"] is not None
    ]
    what = ("a (test), EOS scored", "r → p")
    for label, own in (
        ("", pairs),
        ("domain: chat", [p for p in pairs if p["groups"].get("domain") == "chat"]),
        ("incorrect → correct", [p for p in pairs if p["group"] == "incorrect_to_correct"]),
    ):
        own = [p for p in own if p["dataset"] == "a" and p["rejected_change"] is not None]
        line = lines[*what, label]
        assert line["pairs"] == str(len(own)) and len(own) > 1
        for side in ("chosen", "rejected"):
            share = 100 * np.mean([p[f"{side}_change"] < 0 for p in own])
            assert line[f"{side} fell"].split()[0] == f"{share:.1f}"
            change = np.mean([p[f"{side}_change"] for p in own])
            assert float(line[f"{side}, nats"].split()[0]) == pytest.approx(change, rel=0.06)
    assert lines[*what, ""]["chosen fell"].endswith("]")
    keys = {key for line in found.keys[number][1:] for key in line[4:]}
    assert None not in keys  # all of them are sorted as numbers


def test_a_dataset_has_one_name(tmp_path):
    run = write_run(tmp_path, "run", few_records("p"), few_records("r", seed=5))
    rows = compare_models([("p", few_records("p")), ("q", few_records("q", 1))], 0)
    write_json_lines(tmp_path / "run.compare.jsonl", rows)
    html = page_of(run)
    for columns, *lines in filter(None, Tables(html).tables):
        if "dataset" in columns:
            place = columns.index("dataset")
            assert {line[place].split(",")[0] for line in lines} <= {"a (test)", "b (test)"}
    datasets = {example["columns"]["dataset"] for example in embedded(html)["examples"]}
    assert datasets == {"a (test)", "b (test)"}


def test_intervals_have_as_many_digits_everywhere(tmp_path):
    html = page_of(write_run(tmp_path, "run", few_records("p"), few_records("r", seed=5)))
    columns, *lines = Tables(html).with_columns("accuracy [95 %]")
    cells = [dict(zip(columns, line))["accuracy [95 %]"] for line in lines]
    with_interval = [cell for cell in cells if " " in cell]  # one without width is none
    assert len(with_interval) > len(cells) / 2
    assert all(re.fullmatch(r"[\d.]+ \[\d+\.\d, \d+\.\d\]", cell) for cell in with_interval)


def test_each_column_is_explained_once(tmp_path):
    html = page_of(write_run(tmp_path, "run", few_records("p"), few_records("r", seed=5)))
    data = embedded(html)
    legend = html[html.index('id="columns"') :]
    for column in [*data["columns"], *data["completion"]]:
        assert legend.count(f"<dt>{column['title']}</dt>") >= 1
    titles = Tables(html).titles
    assert len(titles) > 20 and all(titles)


@pytest.mark.parametrize("content", ['{"a": 1}', ""])
def test_other_files_are_one_line(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match="x.jsonl: not a summary"):
        read_result_file(tmp_path / "x.jsonl")


def test_a_file_beside_a_summary_is_refused_with_the_name_of_the_summary(tmp_path):
    summary = write_run(tmp_path, "run", few_records(), few_records("r", seed=5))
    with pytest.raises(ValueError, match=f"run.rewards.jsonl: not a summary .*: give {summary}"):
        read_result_file(tmp_path / "run.rewards.jsonl")


# ---------------------------------------------------------------------------- in a browser
@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A page of two models, one with a reference, whose texts are nasty too."""
    folder = tmp_path_factory.mktemp("page")
    records = {m: few_records(m, seed) for seed, m in enumerate(("m1", "m2"))}
    for k, text in enumerate(NASTY):
        for model, own in records.items():
            own.append(scored(100 + k, [-1.5, -1.0], [1, 2], texts=[text, f"reply to {k}"], prompt=text,
                              dataset="nasty", model=model))  # fmt: skip
    reference = [*few_records("r", seed=5), *records["m1"][24:]]
    runs = [
        write_run(folder, "m1", records["m1"], reference),
        write_run(folder, "m2", records["m2"]),
    ]
    write_page([read_result_file(run) for run in runs], folder / "page.html")
    return folder / "page.html"


def column_of(driver, table, number):
    """Of the first such table."""
    script = "return [...document.querySelector(arguments[0]).querySelectorAll('tbody > tr:not(.child)')].map(r => r.cells[arguments[1]]?.innerText)"
    return driver.execute_script(script, table, number)


def titles_of(driver, table):
    script = "return [...document.querySelector(arguments[0]).querySelectorAll('thead th')].map(h => h.innerText.trim())"
    return driver.execute_script(script, table)


def shown_of(driver):
    return driver.find_element("css selector", "#pairs .dt-info").text


@needs_browser
def test_it_opens_offline_without_an_error(chromium, many):
    show(chromium, many)
    assert chromium.title == "Preference rankings"
    assert chromium.get_log("browser") == []
    addresses = requests_of(chromium)
    assert many.as_uri() in addresses
    for address in addresses:
        assert address.startswith(("file:", "blob:", "data:")), address
    assert "33" not in shown_of(chromium) and "72 pairs" in shown_of(chromium)


@needs_browser
def test_tables_sort(chromium, many):
    show(chromium, many)
    table = "#results table"
    place = titles_of(chromium, table).index("R (summed)")
    header = chromium.find_elements("css selector", f"{table} > thead th")[place]
    orders = []
    for _ in range(2):
        header.find_element("css selector", ".dt-column-order").click()
        chromium.execute_async_script("setTimeout(arguments[0], 100)")
        values = [float(cell.split()[0]) for cell in column_of(chromium, table, place) if cell]
        orders.append(values)
    assert len(set(orders[0])) > 5
    assert orders[0] == sorted(orders[0]) and orders[1] == sorted(orders[1], reverse=True)
    place = titles_of(chromium, "#pairs-table").index("log-ratio, nats")
    header = chromium.find_elements("css selector", "#pairs-table > thead th")[place]
    header.find_element("css selector", ".dt-column-order").click()
    chromium.execute_async_script("setTimeout(arguments[0], 100)")
    values = [float(cell) for cell in column_of(chromium, "#pairs-table", place) if cell != "–"]
    everything = [
        p["logratio"] for p in embedded(many.read_text("utf-8"))["pairs"] if "logratio" in p
    ]
    assert values == pytest.approx(sorted(everything)[: len(values)], abs=0.0051)


@needs_browser
def test_ches_has_three_digits_whatever_its_size(chromium, tmp_path):
    summary = write_run(tmp_path, "run", few_records("p")[:3], few_records("r", seed=5)[:3])
    pairs = read_json_lines(tmp_path / "run.rewards.jsonl")
    values = (254687.51, -0.0123456, 0.0)
    pairs = [{**p, "ches": x, "ches_normalized": x} for p, x in zip(pairs, values, strict=True)]
    write_json_lines(tmp_path / "run.rewards.jsonl", pairs)
    write_page([read_result_file(summary)], tmp_path / "page.html")
    show(chromium, tmp_path / "page.html")
    chromium.execute_script(
        "document.querySelector('.buttons-colvis').click();"
        "[...document.querySelectorAll('.dt-button')].filter(b => b.innerText.startsWith('CHES'))"
        ".forEach(b => b.click())"
    )
    titles = titles_of(chromium, "#pairs-table")
    for title, third in (("CHES", "-0.012"), ("CHES, normalized", "-0.0123")):
        cells = column_of(chromium, "#pairs-table", titles.index(title))
        assert sorted(cells) == sorted(["255000", third, "0"])


@needs_browser
def test_filters_filter(chromium, many):
    from selenium.webdriver.support.ui import Select

    show(chromium, many)
    data = embedded(many.read_text("utf-8"))
    pairs = [{**pair, **data["examples"][pair["example"]]["columns"]} for pair in data["pairs"]]
    chosen = {"model": "m1, EOS scored", "dataset": "a (test)", "groups": "domain: chat",
              "ranked": "wrong", "group": "correct → incorrect"}  # fmt: skip
    kept = pairs
    for key, value in chosen.items():
        Select(chromium.find_element("css selector", f"[data-key={key}]")).select_by_visible_text(
            value
        )
        kept = [
            p for p in kept if value in (p.get(key), *(p.get(key) or [] if key == "groups" else []))
        ]
        assert f"of {len(kept)} pair" in shown_of(chromium), key
    assert 0 < len(kept) < 5
    chromium.find_element("css selector", "#filters [type=reset]").click()
    chromium.execute_async_script("setTimeout(arguments[0], 50)")
    assert f"of {len(pairs)} pairs" in shown_of(chromium)
    for key, low, high in (("logratio", -9.5, 4), ("length_difference", 0, 1)):
        for test, bound in (("from", low), ("to", high)):
            box = chromium.find_element("css selector", f"[data-key={key}][data-test={test}]")
            box.send_keys(str(bound))
        pairs = [p for p in pairs if key in p and low <= p[key] <= high]
        assert f"of {len(pairs)} pairs" in shown_of(chromium)
    right = 100 * np.mean([p["ranked"] == "right" for p in pairs])
    text = chromium.find_element("id", "of-filtered").text
    assert text.startswith(f"Of these {len(pairs)} pairs the model ranks {right:.1f} % right by R")
    assert chromium.get_log("browser") == []


@needs_browser
def test_a_search_finds_and_a_pair_opens_as_text(chromium, many):
    """With the keyboard. What is searched for is in a completion, beyond what the table shows."""
    from selenium.webdriver.common.keys import Keys

    show(chromium, many)
    box = chromium.find_element("css selector", "#pairs .dt-search input")
    for k, text in enumerate(NASTY):
        box.clear()
        box.send_keys(f'"reply to {k}" m1')
        assert "of 1 pair" in shown_of(chromium)
        button = chromium.find_element("css selector", "button.open")
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-expanded") == "true"
        said = chromium.execute_script(
            "return ['.turn p', '.chosen .text', '.rejected .text'].map("
            "s => [...document.querySelector(s).textContent].map(c => c.codePointAt(0)))"
        )
        assert ["".join(map(chr, codes)) for codes in said] == [text, text, f"reply to {k}"]
        numbers = chromium.find_element("css selector", ".chosen dl").text.split("\n")
        found = dict(zip(numbers[::2], numbers[1::2]))
        assert found["log-likelihood, nats"] == "-1.50" and found["tokens"] == "2"
        assert found["probability per token, %"] == f"{100 * math.exp(-0.75):.1f}"
        assert found["reward, nats"] == "0.000"
        button.send_keys(Keys.ENTER)
        assert chromium.find_elements("css selector", ".pair") == []
    assert chromium.title == "Preference rankings" and chromium.get_log("browser") == []
    assert chromium.find_elements("css selector", "main img, main b:not(.turn b)") == []


@needs_browser
@pytest.mark.parametrize(("width", "side_by_side"), [(1400, True), (400, False)])
def test_wide_and_narrow(chromium, many, width, side_by_side):
    """The page is never wider than the screen; completions stand beside or below each other."""
    show(chromium, many, width)
    chromium.execute_script("document.querySelector('button.open').click()")
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = chromium.execute_script(
        "return ['.chosen', '.rejected'].map(s => document.querySelector(`.pair ${s}`).getBoundingClientRect().toJSON())"
    )
    assert (boxes[0]["top"] == boxes[1]["top"]) is side_by_side
    assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)


@needs_browser
def test_a_table_that_goes_on_behind_an_edge_has_a_shadow_there(chromium, many):
    def shadows():
        return chromium.execute_async_script(
            "const box = document.querySelector('#results .dt-layout-full'), done = arguments[0];"
            "setTimeout(() => done([box.classList.contains('more-left'),"
            "box.classList.contains('more-right'), getComputedStyle(box).boxShadow !== 'none',"
            "box.scrollWidth > box.clientWidth]), 200)"
        )

    show(chromium, many, 400)
    assert shadows() == [False, True, True, True]
    chromium.execute_script("document.querySelector('#results .dt-layout-full').scrollLeft = 30")
    assert shadows() == [True, True, True, True]
    chromium.execute_script("document.querySelector('#results .dt-layout-full').scrollLeft = 9999")
    assert shadows() == [True, False, True, True]
    show(chromium, many, 3000)  # all of it is there
    assert shadows() == [False, False, False, False]


@needs_browser
def test_the_lock_on_scripts_and_requests_holds(chromium, tmp_path):
    """Were a text ever taken for HTML, its script would not run and its picture not be fetched."""
    html = page_of(write_run(tmp_path, "run", few_records()))
    path = tmp_path / "page.html"
    path.write_text(html.replace("</main>", "<script>document.title = 'broken'</script>"
                                 "<img src='http://127.0.0.1:9/x.png'></main>"))  # fmt: skip
    show(chromium, path)
    assert chromium.title == "Preference rankings"
    refused = " ".join(entry["message"] for entry in chromium.get_log("browser"))
    assert "script-src" in refused and "img-src" in refused


def test_reward_accuracy_is_of_the_run_that_a_line_is_of(tmp_path):
    """Two sizes of a sample of one dataset and model."""
    summaries, wanted = [], []
    for name, size, seed in (("small", 10, 5), ("large", 20, 6)):
        records, before = few_records()[:size], few_records("before", seed)[:size]
        summary = write_run(tmp_path, name, records, before)
        rows = [{**row, "sample_size": size} for row in read_json_lines(summary)]
        write_json_lines(summary, rows)
        summaries.append(summary)
        wanted += [
            f"{100 * row['distance_metric_value_mean']:.1f}"
            for row in rows
            if row["distance_metric"] == "reward_acc"
            and row["calib_property"] == "ranking_non-length-normalized"
        ]
    columns, *lines = Tables(page_of(*summaries)).with_columns("group", "reward accuracy")
    cells = [dict(zip(columns, line)) for line in lines]
    found = [cell["reward accuracy"].split()[0] for cell in cells if not cell["group"]]
    assert found == wanted and len(set(wanted)) > 2


def test_what_lies_beside_a_file_that_gzip_made_smaller_is_found(tmp_path):
    summary = write_run(tmp_path, "run", few_records())
    whole = embedded(page_of(summary))
    packed = summary.with_name("run.jsonl.gz")
    packed.write_bytes(gzip.compress(summary.read_bytes()))
    assert embedded(page_of(packed)) == whole and whole["pairs"]


def test_a_page_without_room_for_pairs_has_none(tmp_path):
    html = page_of(write_run(tmp_path, "run", few_records()), most_bytes=0)
    assert embedded(html)["pairs"] == []
