import asyncio
import json
import os
import random
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep import AheadBy, Plan, Run, SkillLibrary, Task, ToolSkill
from keystep.errors import BadInput
from keystep.lm.base import LM, Sample, draw_key
from keystep.measure.taskbench import (
    Node,
    Solution,
    SubGraph,
    Tool,
    ToolGraph,
    bench,
    draw,
    lint,
    load_graph,
    load_samples,
    planner,
    report,
    resource_graph,
    retrieval,
    sample,
    sample_of,
    solution_of,
    temporal_graph,
)
from keystep.measure.taskbench import (
    Sample as Gold,
)
from keystep.measure.taskbench.back_instruct import alignment, back_instruct, read, referring
from keystep.measure.taskbench.bench import Settings
from keystep.measure.taskbench.rouge import common, ratio, rouge_l, rouge_n, words
from keystep.measure.taskbench.sampling import SHAPES, SIZES
from keystep.measure.taskbench.scoring import kind_of
from keystep.measure.taskbench.templates import toolbox_graph, toolbox_request, toolbox_wordings
from keystep.run import First, Flag
from keystep.worlds import toolbox

DATA = Path(os.environ.get("KEYSTEP_DATA", "/nowhere")) / "taskbench"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="KEYSTEP_DATA names no folder with taskbench/")

TEXT = ToolGraph([Tool(id=id) for id in "ABCDEXYZ"], {})
MEDIA = toolbox_graph()


def solution(tools, links=(), steps=()):
    return Solution(tuple(steps), tuple(Node(tool) if isinstance(tool, str) else Node(*tool) for tool in tools), tuple(links))


def gold(id, *args, shape="chain"):
    return Gold(id, "please", shape, solution(*args))


def scored(pairs, graph, **options):
    """Both conventions' overall figures; `pairs` of gold and predicted solutions."""
    samples = [Gold(str(number), "please", "chain", due) for number, (due, _) in enumerate(pairs)]
    given = {str(number): said for number, (_, said) in enumerate(pairs)}
    found = report(samples, given, graph, **options)["groups"]["overall"]
    return found["published"], found["honest"]


# graphs


@needs_data
@pytest.mark.parametrize(
    ("name", "tools", "links", "density"),
    [("multimedia", 40, 449, 0.2878), ("huggingface", 23, 225, 0.4447), ("dailylifeapis", 40, 1560, 1)],
)
def test_the_rule_gives_the_published_graphs(name, tools, links, density):
    by_rule = load_graph(DATA / f"{name}.tool_desc.json")
    published = load_graph(DATA / f"{name}.tool_desc.json", DATA / f"{name}.graph_desc.json")
    assert by_rule.links == published.links and (len(by_rule.tools), len(by_rule.links)) == (tools, links)
    assert by_rule.density == pytest.approx(density, abs=5e-5)


@needs_data
def test_the_toolbox_has_the_multimedia_graph():
    published = load_graph(DATA / "multimedia.tool_desc.json")
    assert MEDIA.links == published.links and len(MEDIA.successors("Text Downloader")) == 21
    assert {id: (tool.takes, tool.gives) for id, tool in MEDIA.tools.items()} == {
        id: (tool.takes, tool.gives) for id, tool in published.tools.items()
    }


def test_graphs_by_rule():
    tools = [Tool(id="a", takes=("text",), gives=("image",)), Tool(id="b", takes=("image", "text"), gives=("image",)), Tool(id="c")]
    assert resource_graph(tools).links == {("a", "b"): "image"}
    assert len(temporal_graph(tools).links) == 6 and temporal_graph(tools).density == 1
    assert len(MEDIA.links) == 449 and MEDIA.typed


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"nodes": []}', '{"nodes": [3]}', '{"nodes": [{"desc": "no id"}]}', '{"nodes": [{"id": "a", "input-type": 3}]}',
        '{"nodes": [{"id": "a"}, {"id": "a"}]}', "[" * 100_000, "\udcff",
    ],
)  # fmt: skip
def test_bad_graph_files(tmp_path, text):
    file = tmp_path / "tools.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput):
        load_graph(file)
    with pytest.raises(BadInput):
        load_graph(tmp_path / "none.json")
    good, links = tmp_path / "good.json", tmp_path / "links.json"
    good.write_text('{"nodes": [{"id": "a"}]}')
    for wrong in ('{"links": [3]}', '{"links": [{"source": "a", "target": "nobody"}]}', '{"nodes": []}'):
        links.write_text(wrong)
        with pytest.raises(BadInput):
            load_graph(good, links)


# sampling


def test_mean_sizes():
    total = sum(SIZES.values())
    chain = sum(size * weight for size, weight in SIZES.items()) / total
    dag = sum(max(3, size) * weight for size, weight in SIZES.items()) / total
    overall = (SHAPES["single"] + SHAPES["chain"] * chain + SHAPES["dag"] * dag) / sum(SHAPES.values())
    assert (chain, dag, overall) == (pytest.approx(4.512, abs=5e-4), pytest.approx(4.610, abs=5e-4), pytest.approx(3.970, abs=5e-4))
    graph, drawn = temporal_graph(Tool(id=str(n)) for n in range(30)), random.Random(1)
    sizes = [len(draw(graph, drawn).tools) for _ in range(4000)]
    assert sum(sizes) / len(sizes) == pytest.approx(3.970, abs=0.12)  # 4 standard errors


def tools_of(n):
    kinds = st.lists(st.sampled_from(("text", "image", "audio")), max_size=2).map(tuple)
    return st.lists(st.tuples(kinds, kinds), min_size=1, max_size=n)


@settings(max_examples=60)
@given(tools_of(6), st.sampled_from(sorted(SHAPES)), st.integers(1, 10), st.integers())
def test_samples_are_acyclic_parts_of_the_graph(kinds, shape, size, seed):
    graph = resource_graph(Tool(id=str(n), takes=takes, gives=gives) for n, (takes, gives) in enumerate(kinds))
    sub = sample(graph, shape, size, random.Random(seed))
    assert 1 <= len(sub.tools) <= (1 if shape == "single" else max(size, 3)) and len(set(sub.tools)) == len(sub.tools)
    assert all(link in graph and link[0] in sub.tools and link[1] in sub.tools for link in sub.links)
    Plan(steps=[{"id": f"t{t}", "skill": t, "needs": [f"t{s}" for s, target in sub.links if target == t]} for t in sub.tools])  # no cycle
    if shape == "chain":
        assert sub.links == tuple(pairwise(sub.tools))
    for tool in sub.tools:  # a typed slot is fed once
        fed = [graph.links[link] for link in sub.links if link[1] == tool]
        assert all(fed.count(kind) <= max(1, graph.tools[tool].takes.count(kind)) for kind in fed)


def test_a_chain_ends_where_no_tool_is_left():
    pair = temporal_graph([Tool(id="a"), Tool(id="b")])
    assert len(sample(pair, "chain", 10, random.Random(0)).tools) == 2
    assert len(sample(pair, "dag", 10, random.Random(0)).tools) == 2
    alone = ToolGraph([Tool(id="a"), Tool(id="b")], {})
    assert sample(alone, "dag", 3, random.Random(0)).links == ()
    for shape, size in (("ring", 3), ("chain", 0)):
        with pytest.raises(BadInput):
            sample(pair, shape, size, random.Random(0))


# scores: known answers


def test_rouge():
    """The figures of rouge-score 0.1.2 without stemming."""
    ours, theirs = words("The cat sat on the mat."), words("the cat is on the mat")
    assert [rouge_n(ours, theirs, n) for n in (1, 2)] == pytest.approx([10 / 12, 6 / 10])
    assert rouge_l(ours, theirs) == pytest.approx(10 / 12)
    a = words("Step 1: Use Text Expander to expand the short text.\nStep 2: Use Voice-Changer on example.wav")
    b = words("Step 1: Expand the short text with the Text Expander\nStep 2: Modify the voice in example.wav")
    assert [rouge_n(a, b, 1), rouge_n(a, b, 2), rouge_l(a, b)] == pytest.approx(ROUGE_B, abs=5e-5)
    assert rouge_n([], ["a"], 1) == rouge_l([], []) == rouge_n(["a"], ["a"], 2) == 0
    assert words("Ünïcode 3,5 a_b") == ["n", "code", "3", "5", "a", "b"]


ROUGE_B = (0.72222, 0.41176, 0.61111)


@settings(max_examples=60)
@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_common_subsequence(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert common(a, b) == common(b, a) == table[-1][-1]


def test_edit_distance():
    assert ratio([1, 2, 3], [1, 3, 4]) == pytest.approx(2 / 3) and ratio([1, 2], [2, 1]) == 0.5 and ratio([], []) == 1
    _, honest = scored([(solution("ABC"), solution("ACD"))], TEXT)
    assert honest["edit_distance"] == pytest.approx(1 / 3)


def test_node_and_link_f1():
    pairs = [(solution("ABC", ["AB", "BC"]), solution("ACX", ["AC"])), (solution("D"), solution("D"))]
    pairs = [
        (Solution(a.steps, a.nodes, tuple(map(tuple, a.links))), Solution(b.steps, b.nodes, tuple(map(tuple, b.links)))) for a, b in pairs
    ]
    for figures in scored(pairs, TEXT):
        assert figures["node_precision"] == figures["node_recall"] == figures["node_f1"] == 0.75
        assert figures["link_f1"] == 0
    for figures in scored([(solution("AAB"), solution("AB"))], TEXT):
        assert figures["node_f1"] == 1 and figures["link_f1"] is None and figures["exact_graph"] == 0


def test_an_invented_tool():
    published, honest = scored([(solution("A"), solution(["A", "made up"]))], TEXT)
    assert published["node_f1"] == 1 and honest["node_f1"] == pytest.approx(2 / 3) and honest["invented_nodes"] == 0.5


def test_a_missing_prediction():
    published, honest = scored([(solution("AB", [("A", "B")], ["a b"]), None), (solution("A"), solution("A"))], TEXT)
    assert published["samples"] == 1 and published["node_f1"] == 1 and published["link_f1"] is None
    assert honest["samples"] == 2 and honest["node_f1"] == 0.5 and honest["link_f1"] == 0
    assert honest["edit_distance"] == 0.5


def test_typed_arguments():
    due = solution([("Text-to-Audio", ("hello",)), ("Audio Effects", ("<node-0>", "reverb")), ("Audio-to-Image", ("<node-1>",))])
    said = solution([("Text-to-Audio", ("hello",)), ("Audio_Effects", ("<node-0>", "chorus")), ("Audio-to-Image", ("x.wav",))])
    for figures in scored([(due, said)], MEDIA):
        assert figures["node_f1"] == 1 and figures["link_f1"] == pytest.approx(2 / 3)
        assert figures["parameter_name_f1"] == 1  # every argument has the right type
        assert figures["parameter_value_f1"] == pytest.approx(4 / 8)
    assert [kind_of(text) for text in ("a.JPG", "a.jpg", "http://x.y/a.mp4?z", "b.wav", "word")] == [
        "text",
        "image",
        "video",
        "audio",
        "text",
    ]


def test_a_self_reference_is_nothing_and_a_dangling_one_is_wrong():
    plain = solution([("Text Search", ("bees",))])
    itself = solution([("Text Search", ("bees", "<node-0>"))])
    nowhere = solution([("Text Search", ("bees", "<node-7>", "<node-x>"))])
    for figures in scored([(plain, itself)], MEDIA):
        assert figures["parameter_value_f1"] == 1 and figures["link_f1"] is None
    for figures in scored([(plain, nowhere)], MEDIA):
        assert figures["parameter_value_f1"] == pytest.approx(2 / 4) and figures["link_f1"] is None
    assert lint(gold("1", [("Text Search", ("<node-1>",)), ("Text Search", ("<node-1>",))]), MEDIA)[-1].startswith(
        "node 1 refers to itself"
    )


def test_named_arguments():
    graph = temporal_graph([Tool(id="book", parameters=[{"name": "day"}, {"name": "city"}]), Tool(id="pay")])
    due = solution([("book", ({"name": "day", "value": "May 1"}, {"name": "city", "value": "Rome"})), "pay"], [("book", "pay")])
    said = solution([("book", ({"name": "day", "value": "May 2"}, "Rome")), "pay"], [("pay", "book")])
    for figures in scored([(due, said)], graph):
        assert figures["parameter_name_f1"] == 0.5 and figures["parameter_value_f1"] == 0 and figures["link_f1"] == 0


def test_a_similarity_of_ones_own():
    seen = []

    def similarity(ours, theirs):
        seen.append((list(ours), list(theirs)))
        return [0.5] * len(ours)

    _, honest = scored([(solution("A", (), ["one", "two"]), solution("A", (), ["one"]))], TEXT, similarity=similarity)
    assert honest["steps_similarity"] == 0.5 and seen == [(["one"], ["one\ntwo"])]


# scores: properties

ids = st.sampled_from(["Text Search", "Text-to-Image", "Image Stitcher", "Video Search", "nobody's tool"])
arguments = st.sampled_from(["<node-0>", "<node-1>", "<node-5>", "bees", "a.jpg"])
solutions = st.builds(
    lambda nodes, steps, links: Solution(tuple(steps), tuple(Node(task, tuple(given)) for task, given in nodes), tuple(links)),
    st.lists(st.tuples(ids, st.lists(arguments, max_size=2)), min_size=1, max_size=5),
    st.lists(st.sampled_from(["find bees", "draw it", ""]), max_size=4),
    st.lists(st.tuples(ids, ids), max_size=3),
)
golds = solutions.filter(lambda s: all(node.task in MEDIA.tools for node in s.nodes))


@settings(max_examples=60)
@given(st.lists(st.tuples(golds, st.one_of(st.none(), solutions)), min_size=1, max_size=4), st.booleans())
def test_figures_are_shares(pairs, written):
    for figures in scored(pairs, MEDIA, written_links=written):
        assert all(value is None or 0 <= value <= 1 for name, value in figures.items() if name != "samples")


@settings(max_examples=60)
@given(st.lists(golds, min_size=1, max_size=4))
def test_the_gold_is_perfect(all_of):
    for figures in scored([(one, one) for one in all_of], MEDIA):
        assert all(figures[name] in (None, 1) for name in figures if "_f1" in name and "macro" not in name)
        assert figures["edit_distance"] == 0 and figures["exact_graph"] == 1
        assert figures["rouge1"] == pytest.approx(sum(bool(words("\n".join(one.steps))) for one in all_of) / len(all_of))


@settings(max_examples=60)
@given(st.lists(st.tuples(golds, golds), min_size=1, max_size=4), st.randoms())
def test_swapping_sides_and_shuffling_samples(pairs, shuffled):
    found = scored(pairs, MEDIA)
    swapped = scored([(b, a) for a, b in pairs], MEDIA)
    moved = list(pairs)
    shuffled.shuffle(moved)
    again = scored(moved, MEDIA)
    for way, other, mixed in zip(found, swapped, again, strict=True):
        for name, value in way.items():
            assert mixed[name] == (None if value is None else pytest.approx(value))
            if "f1" in name or name in ("edit_distance", "exact_graph", "rouge1", "rouge2", "rougeL"):
                assert other[name] == (None if value is None else pytest.approx(value))
            if name.endswith("_precision"):
                assert other[name.replace("precision", "recall")] == value


@settings(max_examples=60)
@given(st.lists(st.tuples(golds, solutions), min_size=1, max_size=4))
def test_honest_is_never_kinder_to_tools(pairs):
    published, honest = scored(pairs, MEDIA)
    assert (honest["node_f1"] or 0) <= (published["node_f1"] or 0) + 1e-12


# files


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["<node-0>", "<node-", "Text Search"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["task", "arguments", "source", "target", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
records = st.dictionaries(
    st.sampled_from(["task_steps", "task_nodes", "task_links", "tool_nodes", "result", "tool_steps", "x"]), json_values, max_size=4
)
PROBLEMS = bench.problems(Settings(n=3), 0)


@settings(max_examples=200)
@given(st.one_of(records, json_values))
def test_any_prediction_is_scored(record):
    answers = [bench.predicted(Settings(n=3), PROBLEMS[0], record), [record], []]
    found = bench.score(Settings(n=3), PROBLEMS, answers)
    json.dumps(found, allow_nan=False)
    for chart in bench.charts(found):
        assert chart.lines


def test_both_schemas():
    mine = {"task_steps": ["one"], "task_nodes": [{"task": "A", "arguments": ["x"]}], "task_links": [{"source": "A", "target": "B"}]}
    hub = {"tool_steps": json.dumps(["one"]), "tool_nodes": json.dumps(mine["task_nodes"]), "tool_links": json.dumps(mine["task_links"])}
    assert solution_of(mine) == solution_of(hub) == solution_of({"id": 3, "result": mine}) == solution_of([mine])
    assert solution_of({"result": json.dumps(mine)}) == solution_of(mine)
    assert sample_of({"id": 1, "instruction": "go", "type": "single", **hub}).request == "go"
    assert solution_of(solution_of(mine).as_json()) == solution_of(mine)


def test_steps_that_are_no_texts():
    said = [{"step": 1, "description": "first"}, {"task": "second"}, {"x": 1}, 4]
    assert solution_of({"task_nodes": [], "task_steps": said}).steps == ("first", "second", "{'x': 1}", "4")
    assert solution_of({"task_nodes": [], "task_steps": "all at once"}).steps == ("all at once",)


@pytest.mark.parametrize(
    "row",
    [
        3, {}, {"id": 1}, {"id": [1], "user_request": "x"}, {"id": 1, "user_request": 3}, {"id": 1, "user_request": "x", "task_nodes": []},
        {"id": 1, "user_request": "x", "task_nodes": [{}]}, {"id": 1, "user_request": "x", "task_nodes": [{"task": "A"}] * 5000},
    ],
)  # fmt: skip
def test_bad_gold(tmp_path, row):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(BadInput):
        load_samples(file)


def test_gold_files(tmp_path):
    rows = [sample.as_json() for sample in (gold("1", "AB", [("A", "B")]), gold("2", "C", shape="single"))]
    for name, text in (
        ("a.jsonl", "\n".join(map(json.dumps, rows))),
        ("a.json", json.dumps(rows)),
        ("b.json", "\n".join(map(json.dumps, rows))),
    ):
        (tmp_path / name).write_text(text)
        assert [sample.id for sample in load_samples(tmp_path / name)] == ["1", "2"]
    (tmp_path / "twice.jsonl").write_text((json.dumps(rows[0]) + "\n") * 2)
    (tmp_path / "torn.json").write_text('{"id": 1,\n')
    for name in ("twice.jsonl", "torn.json", "none.json"):
        with pytest.raises(BadInput):
            load_samples(tmp_path / name)


def test_a_row_without_a_type_has_a_shape():
    chain = sample_of({"id": 1, "user_request": "x", "task_nodes": [{"task": "A"}, {"task": "B", "arguments": ["<node-0>"]}]})
    fork = {"task_nodes": [{"task": "A"}, {"task": "B"}, {"task": "C"}], "task_links": [{"source": "A", "target": t} for t in "BC"]}
    assert chain.shape == "chain" and sample_of({"id": 1, "user_request": "x", **fork}).shape == "dag"


@needs_data
def test_the_real_gold_and_predictions():
    tmdb = load_graph(DATA / "tmdb.tool_desc.json", DATA / "tmdb.graph_desc.json")
    samples = load_samples(DATA / "tmdb.data.json")
    assert (len(samples), len(tmdb.tools), len(tmdb.links)) == (100, 46, 514)
    links = [link for each in samples for link in each.gold.links]
    assert (len(links), sum(link in tmdb for link in links)) == (126, 89)
    figures = report(samples, {each.id: each.gold for each in samples}, tmdb)["groups"]["overall"]["honest"]
    assert figures["node_f1"] == figures["link_f1"] == 1 and figures["parameter_name_f1"] is None
    assert sorted({each.shape for each in samples}) == ["chain", "single"]
    lines = (DATA / "multimedia.pred.CodeLlama-13b.first200.jsonl").read_text().splitlines()
    said = {row["id"]: solution_of(row) for row in map(json.loads, lines)}
    assert len(said) == 200
    truth = [Gold(id, "", "chain", one) for id, one in said.items()]
    itself = report(truth, said, load_graph(DATA / "multimedia.tool_desc.json"), written_links=True)["groups"]["overall"]["published"]
    assert itself["node_f1"] == itself["link_f1"] == itself["parameter_value_f1"] == 1 and itself["invented_links"] > 0.1


@needs_data
def test_the_real_requests_make_prompts():
    for name in ("multimedia", "huggingface", "dailylifeapis"):
        graph = load_graph(DATA / f"{name}.tool_desc.json")
        requests = [json.loads(line) for line in (DATA / f"{name}.user_requests.first1500.jsonl").read_text().splitlines()]
        assert len(requests) == 1500
        prompt = planner.prompt(requests[0]["user_request"], graph)
        assert requests[0]["user_request"] in prompt and all(json.dumps(id)[1:-1] in prompt for id in graph.tools)


# back-instruct


class Author(LM):
    """Words the sub-graph in its prompt as asked for; now and then it forgets a link, a step, or its form, or its teacher says no."""

    name = "author"

    async def sample(self, request):
        for index in range(request.first, request.first + request.n):
            drawn = random.Random(draw_key(request.seed, request.key, index))
            yield Sample(self.answer(request.prompt, drawn), index, tokens_in=10, tokens_out=10)

    def answer(self, prompt, drawn):
        tools = [json.loads(line) for line in re.findall(r"^\{\"id\".*$", prompt, re.MULTILINE)]
        links = [
            dict(zip(("source", "target"), line.split(" -> "), strict=True))
            for line in re.findall(r"^[^.{\n]+ -> .+$", prompt, re.MULTILINE)
        ]
        nodes = [{"id": t["id"], "input": [link["source"] for link in links if link["target"] == t["id"]]} for t in tools]
        steps, verdict, mood = [f"use {tool['id']}" for tool in tools], "Executable: yes, Correct: yes", drawn.random()
        if mood < 0.2:
            links = links[1:]
        elif mood < 0.3:
            steps = steps[1:]
        elif mood < 0.4:
            verdict = "found mistakes. Executable: yes, Correct: no."
        elif mood < 0.5:
            return "I would rather not."
        graph = {"nodes": nodes, "links": links}
        text = json.dumps({"task_steps": steps, "user_request": "please", "invoking_graph": graph, "check_by_teacher": verdict})
        return f"Here it is:\n```json\n{text}\n```" if mood > 0.8 else text


def test_back_instruct():
    made = asyncio.run(back_instruct(Run(Author(), vote=AheadBy(1)), MEDIA, 120))
    assert len(made) == 120  # a malformed answer is drawn again
    kept = [each for each in made if each.kept]
    assert 60 <= len(kept) < 110
    assert any(each.teacher and not each.links for each in made) and any(each.by_rule and not each.teacher for each in made)
    assert any(not each.steps for each in made)
    for each in kept:
        planner.plan(each.sample.gold, MEDIA)
        assert not [oddity for oddity in lint(each.sample, MEDIA) if "itself" in oddity or "none" in oddity]
    ids = alignment(made)
    assert sorted(id for shape in ids["all_alignment_id"].values() for id in shape) == sorted(each.sample.id for each in kept)
    assert {id for shape in ids["graph_alignment_id"].values() for id in shape} >= {each.sample.id for each in kept}


def test_back_instruct_is_resumed(tmp_path):
    first = asyncio.run(back_instruct(Run(Author(), journal=tmp_path / "j.db", id="a", vote=First()), MEDIA, 10))

    class Silent(Author):
        def answer(self, prompt, drawn):
            raise AssertionError("asked again")

    assert asyncio.run(back_instruct(Run(Silent(), journal=tmp_path / "j.db", id="a", vote=First()), MEDIA, 10)) == first


def test_names_become_references_in_order():
    said = Solution(
        ("speak", "search"), (Node("Text-to-Audio", ("the output of Text Search",)), Node("Text Search", ("bees",))),
        (("Text Search", "Text-to-Audio"),),
    )  # fmt: skip
    assert referring(said) == Solution(
        ("search", "speak"), (Node("Text Search", ("bees",)), Node("Text-to-Audio", ("<node-0>",))), said.links
    )


@settings(max_examples=60)
@given(json_values)
def test_any_authors_reply_is_read_or_flagged(value):
    sub = SubGraph("single", ("Text Search",), ())
    for text in (json.dumps(value), json.dumps({"task_steps": [], "user_request": "", "invoking_graph": value})):
        with suppress(Flag):
            read(text, sub, MEDIA, "1")


@settings(max_examples=60)
@given(st.integers())
def test_template_requests_are_sound(seed):
    drawn = random.Random(seed)
    sub = draw(MEDIA, drawn)
    made = toolbox_request(sub, MEDIA, toolbox_wordings(), drawn, "1")
    assert sorted(node.task for node in made.gold.nodes) == sorted(sub.tools) and len(made.gold.steps) == len(sub.tools)
    assert lint(made, MEDIA) == []
    for node in made.gold.nodes:
        assert len(node.arguments) == len(MEDIA.tools[node.task].takes)
        assert all(argument in made.request for argument in node.arguments if not argument.startswith("<"))
    plan = planner.plan(made.gold, MEDIA)
    assert len(plan.steps) == len(sub.tools)
    found = report([made], {"1": made.gold}, MEDIA)["groups"]["overall"]["honest"]
    assert found["exact_graph"] == 1 and found["link_f1"] in (None, 1)


def test_every_phrase_names_its_inputs():
    for id, (takes, _, phrases) in toolbox.TOOLS.items():
        assert len(phrases) > toolbox.HELD_OUT and len(set(phrases)) == len(phrases), id
        for phrase in phrases:
            said = phrase.format(*(f"[{n}]" for n in range(len(takes))))
            assert all(f"[{n}]" in said for n in range(len(takes))), phrase


# planners and plans

TOOLS = [
    ("Text Downloader", lambda arguments: Path(arguments[0]).read_text()),
    ("Text Summarizer", lambda arguments: arguments[0].split(".")[0] + "."),
    ("Keyword Extractor", lambda arguments: " ".join(sorted({word for word in words(arguments[0]) if len(word) > 4}))),
    ("URL Extractor", lambda arguments: re.findall(r"https?://\S+", arguments[0])[0]),
    ("Text-to-Image", lambda arguments: {"picture of": arguments[0]}),
]


def library():
    return SkillLibrary([ToolSkill(id, function) for id, function in TOOLS])


class Wise(LM):
    """Plans a summary with a picture and keywords."""

    name = "wise"

    async def sample(self, request):
        file = re.search(
            r"REQUEST: .*?(\S+\.txt)", request.prompt.rpartition("REQUEST")[0] + request.prompt[request.prompt.rindex("REQUEST") :]
        )[1]
        nodes = [
            {"task": "Text Downloader", "arguments": [file]}, {"task": "Text_Summarizer", "arguments": ["<node-0>"]},
            {"task": "Text-to-Image", "arguments": ["<node-1>"]},
        ]  # fmt: skip
        yield Sample("RESULT: " + json.dumps({"task_steps": ["a", "b", "c"], "task_nodes": nodes}), request.first)


def test_a_plan_runs_on_real_tools(tmp_path):
    file = tmp_path / "bees.txt"
    file.write_text("Bees dance for each other. They tell the way.")
    graph = ToolGraph(
        [MEDIA.tools[id] for id, _ in TOOLS], {link: kind for link, kind in MEDIA.links.items() if set(link) <= dict(TOOLS).keys()}
    )
    request = f"Draw what {file} is about."
    plan = asyncio.run(Run(Wise(), vote=First()).solve(planner.Planner(graph), Task(goal=request)))
    assert [step.skill for step in plan.steps] == ["Text Downloader", "Text Summarizer", "Text-to-Image"]
    outcome = Run(Wise()).execute_sync(plan, library())
    assert outcome.result == {"picture of": "Bees dance for each other."}


def test_template_gold_runs_on_real_tools(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.txt").write_text("Great http://example.com/news. More words follow here.")
    sub = SubGraph(
        "chain",
        ("Text Downloader", "Keyword Extractor", "Text Summarizer"),
        (("Text Downloader", "Keyword Extractor"), ("Keyword Extractor", "Text Summarizer")),
    )
    from keystep.measure.taskbench.templates import by_template

    made = by_template(sub, MEDIA, toolbox_wordings(), {"url": ("page.txt",)}, random.Random(0), "1")
    outcome = Run(Wise()).execute_sync(planner.plan(made.gold, MEDIA), library())
    assert outcome.result == "example follow great words."


@pytest.mark.parametrize(
    "nodes",
    [
        [("nobody's tool", ())], [("Text Search", ("<node-0>",))], [("Text Search", ("<node-3>",))],
        [("Text Search", ("<node-1>",)), ("Text Summarizer", ("<node-0>",))], [],
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_flagged(nodes):
    with pytest.raises(Flag):
        planner.plan(solution(nodes), MEDIA)


def test_temporal_plans():
    graph = temporal_graph([Tool(id="book", parameters=[{"name": "day"}]), Tool(id="pay", parameters=[{"name": "what"}]), Tool(id="tell")])
    nodes = [("tell", ()), ("book", ({"name": "day", "value": "May 1"},)), ("pay", ({"name": "what", "value": "book"},))]
    plan = planner.plan(solution(nodes, [("book", "pay"), ("pay", "tell")]), graph)
    assert plan.order() == ["node-1", "node-2", "node-0"] and plan.output == "node-0"
    skills = [
        ToolSkill("book", lambda day: f"room on {day}"),
        ToolSkill("pay", lambda what: f"paid {what}"),
        ToolSkill("tell", lambda: "told"),
    ]
    assert Run(Wise()).execute_sync(plan, SkillLibrary(skills)).result == "told"
    for links in ([("book", "pay"), ("pay", "book")], [("nobody", "pay")]):
        with pytest.raises(Flag):
            planner.plan(solution(nodes, links), graph)
    with pytest.raises(Flag):
        planner.plan(solution([("book", ("May 1",))]), graph)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"task_nodes": 3}', "[" * 100_000, '```json\n{"task_nodes": [{}]}\n```', "RESULT: 3"]
)
def test_replies_without_a_solution(text):
    with pytest.raises(Flag):
        planner.read(text)


def test_prompts_hold_demos_and_no_more_than_three():
    demos = [toolbox_request(draw(MEDIA, random.Random(n)), MEDIA, toolbox_wordings(), random.Random(n), str(n)) for n in range(4)]
    prompt = planner.prompt("do it", MEDIA, demos[:3])
    assert all(demo.request in prompt for demo in demos[:3]) and planner.read(prompt.split("REQUEST:")[1].split("RESULT: ")[1]) is not None
    with pytest.raises(BadInput):
        planner.Planner(MEDIA, demos)


def test_retrieval_and_search():
    graph = temporal_graph(
        [Tool(id="SearchMovie", desc="find movies"), Tool(id="GetMovieCredit", desc="cast and crew"), Tool(id="Weather")]
    )
    graph = ToolGraph(graph.tools.values(), {("SearchMovie", "GetMovieCredit"): "", ("Weather", "SearchMovie"): ""})
    scores = retrieval.Retriever(graph).scores("Who is in the cast and crew of this movie?")
    ranked = retrieval.best(scores, 2)
    assert ranked == ["GetMovieCredit", "SearchMovie"]
    assert retrieval.chained(ranked).links == (("GetMovieCredit", "SearchMovie"),) and retrieval.linked(ranked, graph).links == ()
    assert retrieval.in_graph_order(ranked, graph).links == (("SearchMovie", "GetMovieCredit"),)
    assert [node.task for node in retrieval.walk(scores, graph, 3).nodes] == ["Weather", "SearchMovie", "GetMovieCredit"]
    assert len(retrieval.random_path(graph, 2, random.Random(0)).nodes) == 2


@settings(max_examples=60)
@given(st.permutations(list(MEDIA.tools)[:7]), st.integers(1, 6))
def test_graph_order_is_the_best_order(tools, n):
    from itertools import permutations

    tools = tools[:n]
    best = max(sum(link in MEDIA for link in pairwise(order)) for order in permutations(tools))
    assert len(retrieval.in_graph_order(tools, MEDIA).links) == best


@settings(max_examples=60)
@given(golds)
def test_repair_leaves_links_of_the_graph_only(one):
    for figures in scored([(one, retrieval.repaired(one, MEDIA))], MEDIA):
        assert not figures["invented_links"]


# the benchmark


def test_the_benchmarks_settings(tmp_path):
    with pytest.raises(BadInput):
        bench.problems(Settings(tools="a.json"), 0)
    with pytest.raises(BadInput):
        bench.problems(Settings(n=3, demos=("nobody",)), 0)
    for alone in ({"demos": ("1",)}, {"links": "graph_desc.json"}):  # nothing would come of them
        with pytest.raises(BadInput):
            bench.problems(Settings(n=3, **alone), 0)
    assert bench.problems(Settings(n=4), 7) == bench.problems(Settings(n=4), 7) != bench.problems(Settings(n=4), 8)
    tools, data = tmp_path / "tool_desc.json", tmp_path / "data.json"
    tools.write_text(json.dumps({"nodes": [tool.as_json() for tool in MEDIA.tools.values()]}))
    data.write_text("\n".join(json.dumps(problem) for problem in bench.problems(Settings(n=5), 0)))
    own = Settings(tools=str(tools), data=str(data), demos=("1",))
    assert Settings.model_validate({"tools": str(tools), "data": str(data), "demos": [1]}) == own  # as --set "demos=[1]" reads it
    with pytest.raises(BadInput, match="nobody"):
        bench.problems(own.model_copy(update={"demos": ("nobody",)}), 0)
    problems = bench.problems(own, 0)
    assert [problem["id"] for problem in problems] == ["0", "2", "3", "4"]
    asked = bench.procedure(own, problems[0])
    assert bench.problems(Settings(n=5), 0)[1]["user_request"] in asked.prompt(0)
    answer = asked.read(json.dumps({"result": problems[0]} | {"x": 1}), 0)
    assert bench.score(own, problems[:1], [[answer]])["summary"]["exact_graph"] == 1
    assert bench.score(own, problems, [[answer], [], [None], [3]])["summary"]["coverage"] == 0.25
