"""Datasets: order, ranks, exact resume, and what happens to bad samples."""

from __future__ import annotations

import copy
import io
import itertools
import json
import logging
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from vqrae.data import (
    ImageFolderDataset,
    LlavaDataset,
    MixtureDataset,
    ParquetDataset,
    ShardDataset,
    TableDataset,
    make_loader,
    open_pairs,
)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def good(index: int) -> dict[str, bytes]:
    return {"png": png(index), "txt": f"caption {index}".encode(), "json": b'{"n": %d}' % index}


def make_shards(folder: Path, shards: int = 3, each: int = 10, **bad: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for s in range(shards):
        samples = {f"k{s * each + i:03d}": good(s * each + i) for i in range(each)}
        write_shard(folder / f"s-{s:03d}.tar", {k: bad.get(k, v) for k, v in samples.items()})
    return folder


def make_llava(folder: Path, number: int = 30, name: str = "chat.json") -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(number):
        (folder / "images" / f"{i}.png").write_bytes(png(i))
        turns = [("human", "<image>\nwhat?"), ("gpt", f"{i}"), ("human", "sure?"), ("gpt", "yes")]
        records.append(
            {
                "id": f"q{i:03d}",
                "image": f"images/{i}.png",
                "conversations": [{"from": who, "value": text} for who, text in turns],
                "question_types": ["what", "yesno"],
            }
        )
    (folder / name).write_text(json.dumps(records))
    return folder / name


def make_folder(folder: Path) -> Path:
    for i in range(30):
        place = folder / f"part{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"k{i:03d}.PNG").write_bytes(png(i))
        (place / f"k{i:03d}.txt").write_text(f"caption {i}\n")
    return folder


def make_parquet(folder: Path, **columns: list) -> Path:
    """Two files, of 20 and 10 rows, in row groups of 4."""
    folder.mkdir(exist_ok=True)
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(30)],
        "caption": [f"caption {i}" for i in range(30)],
    } | columns
    for name, part in (("a", slice(0, 20)), ("b", slice(20, 30))):
        table = pyarrow.table({key: values[part] for key, values in rows.items() if values})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=4)
    return folder


def make_table(folder: Path) -> Path:
    if not folder.exists():
        images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(30)]
        texts = [f"caption {i}" for i in range(30)]
        datasets.Dataset.from_dict({"image": images, "text": texts}).save_to_disk(str(folder))
    return folder


def keys(dataset, number: int | None = None) -> list[str]:
    return [sample["key"] for sample in itertools.islice(dataset, number)]


@pytest.fixture
def shards(tmp_path) -> Path:
    return make_shards(tmp_path / "shards")


@pytest.fixture
def chat(tmp_path) -> Path:
    return make_llava(tmp_path / "chat")


def build(kind: str, shards: Path, chat: Path, **options):
    match kind:
        case "shards":
            return ShardDataset(shards, shuffle=7, **options)
        case "llava":
            return LlavaDataset(chat, **options)
        case "folder":
            return ImageFolderDataset(make_folder(shards.parent / "folder"), **options)
        case "parquet":
            return ParquetDataset(make_parquet(shards.parent / "parquet"), shuffle=7, **options)
        case "table":
            return TableDataset(make_table(shards.parent / "table"), **options)
    parts = {"t2i": (ShardDataset(shards, shuffle=7), 2.0), "vqa": (LlavaDataset(chat), 1.0)}
    return MixtureDataset(parts, **options)


PAIRS = ("shards", "folder", "parquet", "table")
KINDS = (*PAIRS, "llava", "mixture")


def test_shard_samples(shards):
    samples = list(ShardDataset(shards, shuffle=0, epochs=1))
    assert [s["key"] for s in samples] == [f"k{i:03d}" for i in range(30)]
    assert samples[7]["text"] == "caption 7" and samples[7]["json"] == {"n": 7}
    assert samples[7]["image"].mode == "RGB" and samples[7]["image"].getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.parametrize("form", ["folder", "glob", "braces", "list", "one"])
def test_shard_names(shards, form):
    urls = {
        "folder": shards,
        "glob": str(shards / "*.tar"),
        "braces": str(shards / "s-{000..002}.tar"),
        "list": [shards / f"s-{i:03d}.tar" for i in range(3)],
        "one": shards / "s-001.tar",
    }[form]
    assert len(keys(ShardDataset(urls, epochs=1))) == (10 if form == "one" else 30)


def test_a_file_of_shard_names(shards, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text(f"{shards}/s-{{000..001}}.tar\n\n{shards}/s-002.tar\n")
    assert len(keys(ShardDataset(names, epochs=1))) == 30


@pytest.mark.parametrize("kind", PAIRS)
def test_one_name_opens_every_kind(kind, shards, chat):
    of_class = build(kind, shards, chat)
    place = shards if kind == "shards" else shards.parent / kind
    found = open_pairs(place, shuffle=0, epochs=1)
    assert type(found) is type(of_class)
    samples = {sample["text"]: sample for sample in found}
    assert sorted(samples) == sorted(f"caption {i}" for i in range(30))
    assert all(s["image"].getpixel((0, 0)) == (int(t[8:]), 0, 0) for t, s in samples.items())
    assert len({sample["key"] for sample in samples.values()}) == 30


def test_tables_name_their_columns(shards, chat):
    folder = make_parquet(shards.parent / "named", key=[f"q{i}" for i in range(30)])
    assert keys(ParquetDataset(folder, shuffle=0), 2) == ["q0", "q1"]
    assert keys(ParquetDataset(folder, shuffle=0, key="caption"), 1) == ["caption 0"]
    bare = make_parquet(shards.parent / "bare", caption=[], picture=[png(i) for i in range(30)])
    assert keys(ParquetDataset(bare, shuffle=0, texts=False, image="picture"), 21)[19:] == [
        "a-00000019",
        "b-00000000",
    ]
    with pytest.raises(ValueError, match="no column of texts by a usual name; name one of image"):
        ParquetDataset(bare)
    with pytest.raises(ValueError, match="no column 'kaption'; it has image, caption, key"):
        ParquetDataset(folder, text="kaption")
    with pytest.raises(ValueError, match="cannot load the dataset 'no/where', split 'train'"):
        open_pairs("hf:no/where")


def test_pictures_without_texts(shards, tmp_path):
    folder = make_folder(tmp_path / "some")
    (folder / "part0" / "k000.txt").unlink()
    assert len(keys(ImageFolderDataset(folder, epochs=1))) == 30
    assert len(keys(ImageFolderDataset(folder, epochs=1, texts=True))) == 29
    pure = write_shard(tmp_path / "pure.tar", {f"k{i}": {"png": png(i)} for i in range(4)})
    assert [s["text"] for s in ShardDataset(pure, epochs=1, texts=False)] == [""] * 4


def test_missing_data_is_named_at_once(tmp_path, shards):
    for urls in (tmp_path / "no.tar", str(tmp_path / "s-{000..003}.tar"), str(tmp_path / "*.tar")):
        with pytest.raises(ValueError, match="check the path"):
            ShardDataset(urls)
    with pytest.raises(ValueError, match="s-003.tar"):
        ShardDataset(str(shards / "s-{000..003}.tar"))
    with pytest.raises(ValueError, match="no shard 'pipe:echo hi'"):
        ShardDataset("pipe:echo hi")
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="is no data that can be read: give a folder of"):
            open_pairs(source / "empty")
    with pytest.raises(ValueError, match="no image folder"):
        ImageFolderDataset(tmp_path / "nowhere")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot read '.*broken.parquet'"):
        ParquetDataset(tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match="no conversations file"):
        LlavaDataset(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{oops")
    with pytest.raises(ValueError, match="is not JSON"):
        LlavaDataset(tmp_path / "bad.json")
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(ValueError, match="not a list of conversations"):
        LlavaDataset(tmp_path / "object.json")


def test_llava_samples(chat):
    sample = next(iter(LlavaDataset(chat, shuffle=0)))
    assert sample["key"] == "q000" and sample["question_types"] == ["what", "yesno"]
    assert sample["conversations"][0] == {"role": "user", "content": "<image>\nwhat?"}
    assert sample["conversations"][3] == {"role": "assistant", "content": "yes"}
    assert [image.size for image in sample["images"]] == [(8, 8)]


def test_a_copy_shares_its_records_but_not_its_place(chat):
    dataset = LlavaDataset(chat)
    twin = copy.deepcopy(dataset)
    assert twin.entries is dataset.entries
    whole = keys(twin, 5)
    assert keys(dataset, 5) == whole


def test_llava_jsonl_roots_and_many_images(tmp_path, chat):
    record = {
        "id": "two",
        "image": ["1.png", "2.png"],
        "conversations": [
            {"role": "user", "content": "<image> and <image>?"},
            {"role": "assistant", "content": "yes"},
        ],
    }
    text = {
        "id": "text",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hi"}],
    }
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps(text) + "\n")
    samples = list(LlavaDataset(path, image_root=chat.parent / "images", shuffle=0, epochs=1))
    assert [len(s["images"]) for s in samples] == [2, 0]
    with pytest.raises(ValueError, match="no image folder"):
        LlavaDataset(path, image_root=tmp_path / "nowhere")


@pytest.mark.parametrize("kind", [*PAIRS, "llava"])
def test_epochs_are_reshuffled_and_whole(kind, shards, chat):
    order = keys(build(kind, shards, chat, seed=1), 90)
    epochs = [order[i : i + 30] for i in (0, 30, 60)]
    assert len({tuple(e) for e in epochs}) == 3 and epochs[0] != sorted(epochs[0])
    assert all(sorted(e) == sorted(epochs[0]) and len(set(e)) == 30 for e in epochs)
    assert order == keys(build(kind, shards, chat, seed=1), 90)
    assert order != keys(build(kind, shards, chat, seed=2), 90)
    finite = build(kind, shards, chat, seed=1, epochs=2)
    assert keys(finite) == order[:60] == keys(finite)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_one_global_stream(kind, world_size, shards, chat):
    whole = keys(build(kind, shards, chat, seed=3), 84)
    for rank in range(world_size):
        part = build(kind, shards, chat, seed=3)
        part.rank, part.world_size = rank, world_size  # as the training loop sets them
        assert keys(part, 84 // world_size) == whole[rank::world_size]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", [0, 1, 17, 30, 47])
def test_resume_is_exact(kind, taken, shards, chat):
    options = {"seed": 5, "rank": 1, "world_size": 2}
    whole = keys(build(kind, shards, chat, **options), taken + 40)
    first = build(kind, shards, chat, **options)
    assert keys(first, taken) == whole[:taken]
    state = json.loads(json.dumps(first.state_dict()))
    second = build(kind, shards, chat, **options)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert keys(second, 40) == whole[taken:]


def go_on(kind, shards, chat, state, counts):
    """Keys and final states of readers that take `counts` samples each from `state` on."""
    found, states = [], []
    for rank, count in enumerate(counts):
        part = build(kind, shards, chat, seed=5, rank=rank, world_size=len(counts))
        if state is not None:
            part.load_state_dict(json.loads(json.dumps(state)))
        found += keys(part, count)
        states.append(part.state_dict())
    return found, build(kind, shards, chat, seed=5).merge_states(states)


@pytest.mark.parametrize("kind", KINDS)
def test_other_readers_go_on_in_the_same_order(kind, shards, chat):
    whole = keys(build(kind, shards, chat, seed=5), 60)
    found, state = go_on(kind, shards, chat, None, (11, 11, 11))
    assert Counter(found) == Counter(whole[:33]) and state["position"] == 31
    found, state = go_on(kind, shards, chat, state, (12,))
    assert found == whole[33:45] and state["position"] == 45 and state["taken"] == []
    found, _ = go_on(kind, shards, chat, state, (3, 3, 3, 3, 3))
    assert Counter(found) == Counter(whole[45:])


@pytest.mark.parametrize("kind", KINDS)
def test_readers_that_stood_far_apart_lose_and_double_nothing(kind, shards, chat):
    whole, found, state = keys(build(kind, shards, chat, seed=5), 100), [], None
    for counts in ((25, 4, 9), (2, 13), (1, 0, 0, 2), (100 - 56,)):
        more, state = go_on(kind, shards, chat, state, counts)
        found += more
    assert Counter(found) == Counter(whole)
    assert state["position"] == 100 and state["taken"] == []


def test_readers_count_their_bad_samples_together(tmp_path):
    folder = make_shards(tmp_path / "s", k004={"txt": b"x"})
    parts = [ShardDataset(folder, shuffle=0, rank=rank, world_size=2) for rank in (0, 1)]
    found = [key for part in parts for key in keys(part, 5)]
    alone = ShardDataset(folder, shuffle=0, epochs=1)
    alone.load_state_dict(alone.merge_states([part.state_dict() for part in parts]))
    assert alone.count.state_dict()["seen"] == 11 and alone.count.state_dict()["bad"] == 1
    assert sorted(found + keys(alone)) == [f"k{i:03d}" for i in range(30) if i != 4]


def test_resume_decodes_nothing_that_was_read_before(shards, monkeypatch):
    first = ShardDataset(shards, seed=5)
    keys(first, 25)
    second = ShardDataset(shards, seed=5)
    second.load_state_dict(first.state_dict())
    decoded = []
    original = ShardDataset._decode
    monkeypatch.setattr(
        ShardDataset, "_decode", lambda self, r: decoded.append(r["__key__"]) or original(self, r)
    )
    assert keys(second, 3) == decoded


def test_mixture_follows_its_weights(shards, chat):
    tasks = Counter(s["task"] for s in itertools.islice(build("mixture", shards, chat), 600))
    assert abs(tasks["t2i"] / 600 - 2 / 3) < 0.06 and set(tasks) == {"t2i", "vqa"}


def test_mixture_errors(shards):
    with pytest.raises(ValueError, match="at least one dataset"):
        MixtureDataset({})
    with pytest.raises(ValueError, match="weight 0 of 'a'"):
        MixtureDataset({"a": (ShardDataset(shards), 0)})
    one = MixtureDataset({"a": (ShardDataset(shards), 1)})
    with pytest.raises(ValueError, match="resume with the same data"):
        one.load_state_dict({"position": 0, "parts": {"b": {}}})
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"):
        keys(ShardDataset(shards, rank=2, world_size=2), 1)


# Bad samples

BAD = {
    "a truncated picture": (
        {"png": png(1)[:40], "txt": b"x"},
        "cannot read image 'k005.png': it is",
    ),
    "no picture": ({"txt": b"x"}, "it has no image"),
    "no text": ({"png": png(1)}, "it has no text"),
    "an empty text": ({"png": png(1), "txt": b"  "}, "it has no text"),
    "a text that is not UTF-8": ({"png": png(1), "txt": b"\xff\xfe\xfa"}, "not UTF-8"),
    "broken json": ({"png": png(1), "txt": b"x", "json": b"{"}, "json does not parse"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_shard_samples_are_skipped_counted_and_named(case, tmp_path, caplog):
    files, reason = BAD[case]
    dataset = ShardDataset(make_shards(tmp_path / "s", k005=files), shuffle=0, epochs=1)
    with caplog.at_level(logging.WARNING):
        found = keys(dataset)
    assert len(found) == 29 and "k005" not in found
    assert dataset.count.state_dict() == {
        "seen": 30,
        "bad": 1,
        "last": f"k005 in {tmp_path / 's' / 's-000.tar'}",
    }
    (record,) = caplog.records
    assert "k005" in record.getMessage() and reason in record.getMessage()


def test_bad_samples_do_not_move_the_others_between_ranks(tmp_path):
    folder = make_shards(tmp_path / "s", k004={"txt": b"x"})
    options = {"shuffle": 0, "epochs": 1, "world_size": 2, "max_bad_share": 0.5}
    parts = [keys(ShardDataset(folder, rank=rank, **options)) for rank in (0, 1)]
    assert parts[0] == [f"k{i:03d}" for i in range(0, 30, 2) if i != 4]
    assert parts[1] == [f"k{i:03d}" for i in range(1, 30, 2)]


def test_too_many_bad_samples_stop_the_run(tmp_path):
    bad = {f"k{i:03d}": {"png": png(i)} for i in (3, 22)}
    folder = make_shards(tmp_path / "s", **bad)
    stream = iter(ShardDataset(folder, shuffle=0))
    # 1 of 20 is just allowed; at the 23rd sample 2 of 23 are bad, above 5%.
    with pytest.raises(ValueError, match=r"2 of 23 samples of .* 'k022 in .*raise max_bad_share"):
        list(itertools.islice(stream, 60))
    assert len(keys(ShardDataset(folder, shuffle=0, max_bad_share=0.2), 54)) == 54


def test_few_samples_are_judged_at_the_end_of_an_epoch(tmp_path):
    folder = make_shards(tmp_path / "s", shards=1, each=5, k002={"txt": b"x"})
    found = []
    with pytest.raises(ValueError, match="1 of 5 samples"):
        for sample in ShardDataset(folder, shuffle=0):
            found.append(sample["key"])
    assert len(found) == 4


def test_counts_survive_a_resume(tmp_path):
    folder = make_shards(tmp_path / "s", k003={"txt": b"x"})
    first = ShardDataset(folder, shuffle=0)
    keys(first, 10)
    second = ShardDataset(folder, shuffle=0)
    second.load_state_dict(first.state_dict())
    keys(second, 1)
    assert (second.count.seen, second.count.bad) == (12, 1)


@pytest.mark.parametrize("damage", ["cut", "cut between members", "header", "text"])
def test_corrupt_shards(damage, tmp_path, caplog):
    folder = make_shards(tmp_path / "s")
    path = folder / "s-001.tar"
    data = bytearray(path.read_bytes())
    match damage:
        case "cut":
            data = data[: 1536 * 7 + 700]
        case "cut between members":
            data = data[: 1024 * 9]
        case "header":
            data[1024 * 9 : 1024 * 9 + 512] = b"\x07" * 512
        case "text":
            data = b"no tar at all" * 200
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"1 of 3 shards .* corrupt, .*s-001.tar"):
        list(ShardDataset(folder, shuffle=0, epochs=1))
    with caplog.at_level(logging.WARNING):
        found = keys(ShardDataset(folder, shuffle=0, epochs=1, max_bad_share=0.4))
    assert set(found) >= {f"k{i:03d}" for i in (*range(10), *range(20, 30))}
    assert "k019" not in found
    assert "s-001.tar" in caplog.records[0].getMessage()


def test_bad_llava_records(chat, caplog):
    records = json.loads(chat.read_text())
    turn = records[0]["conversations"]
    (chat.parent / "images" / "3.png").unlink()
    (chat.parent / "images" / "4.png").write_text("words")
    records[5]["conversations"] = []
    records[6]["conversations"] = turn[:1]
    records[7]["conversations"] = [{"from": "alien", "value": "<image>"}, turn[1]]
    records[8] = "nonsense"
    del records[9]["image"]
    records[10]["conversations"] = [turn[0], {"from": "gpt", "value": None}]
    chat.write_text(json.dumps(records))
    with caplog.at_level(logging.WARNING):
        found = keys(LlavaDataset(chat, shuffle=0, epochs=1, max_bad_share=0.5))
    assert found == [f"q{i:03d}" for i in range(30) if not 3 <= i <= 10]
    messages = [record.getMessage() for record in caplog.records]
    expected = (
        "there is no such file",
        "not an image",
        "no conversations",
        "do not alternate",
        "lacks 'from'",
        "not an object",
        "0 images and 1 '<image>' marks",
        "lacks 'from'",
    )
    assert len(messages) == len(expected)
    assert all(part in message for part, message in zip(expected, messages, strict=True))
    with pytest.raises(ValueError, match="8 of 20 samples .*q010"):
        list(LlavaDataset(chat, shuffle=0, epochs=1))


def test_mixture_stops_above_the_share(shards, tmp_path):
    bad = make_shards(tmp_path / "bad", shards=1, **{f"k{i:03d}": {"txt": b"x"} for i in range(10)})
    parts = {"a": (ShardDataset(shards), 1.0), "b": (ShardDataset(bad), 1.0)}
    with pytest.raises(ValueError, match="20 of 20 samples"):
        keys(MixtureDataset(parts), 500)


def test_a_reader_without_samples_stops_instead_of_spinning(tmp_path):
    folder = make_shards(tmp_path / "s", shards=1, each=2)
    with pytest.raises(ValueError, match="no good sample in a whole epoch"):
        keys(ShardDataset(folder, rank=2, world_size=4, shuffle=0), 10)
    empty = write_shard(tmp_path / "empty.tar", {})
    with pytest.raises(ValueError, match="holds no samples"):
        keys(ShardDataset(empty), 1)


# The loader


def collate(samples: list[dict]) -> dict:
    return {"keys": [sample["key"] for sample in samples]}


@pytest.mark.parametrize("kind", KINDS)
def test_loader_batches_and_resumes(kind, shards, chat):
    def loader():
        return make_loader(build(kind, shards, chat, seed=2), batch_size=4, collate=collate)

    whole = [batch["keys"] for batch in itertools.islice(loader(), 20)]
    assert sum(whole, []) == keys(build(kind, shards, chat, seed=2), 80)
    first = loader()
    for _ in zip(range(11), first, strict=False):
        pass
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert [batch["keys"] for batch in itertools.islice(second, 9)] == whole[11:]


def test_loader_workers_share_the_samples(shards, chat):
    dataset = build("shards", shards, chat, epochs=1)
    loader = make_loader(dataset, batch_size=5, collate=collate, num_workers=2)
    found = sum((batch["keys"] for batch in loader), [])
    assert sorted(found) == [f"k{i:03d}" for i in range(30)]
