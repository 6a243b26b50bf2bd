"""Reports: the two sets of wordings share no sentence, and every sentence says what is true."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from decipher_rt.train.data.lesions import KINDS as LESION_KINDS
from decipher_rt.train.data.sample import Lesion, Sample, Truth
from decipher_rt.train.text.findings import Findings, LesionFinding, sample_findings
from decipher_rt.train.text.wordings import ADJECTIVES, FAMILY_WORDS, NOT_A_HEAD, SEQUENCE_WORDS, write_report
from decipher_rt.volume import Acquisition

REPOSITORY = Path(__file__).resolve().parents[3]
HEAD = Findings(
    kind="head", sequence="FLAIR", family="flair", field_t=3.0, plane="axial", slices=30, slice_step_mm=4.4,
    ventricles="enlarged", ghost=0.01, snr=60.0,
)  # fmt: skip


def every_head() -> list[Findings]:
    """Every value of every finding at least once; two lesions of each kind, region and side."""
    heads = []
    ventricles = itertools.cycle(("enlarged", "narrow", "normal"))
    families = itertools.cycle(FAMILY_WORDS)
    for kind, region, side in itertools.product(LESION_KINDS, ADJECTIVES, ("left", "right", "midline")):
        for sequence, removed in zip(SEQUENCE_WORDS, ("nothing", "face", "scalp", "nothing", "face"), strict=True):
            lesion = LesionFinding(kind, region, side, 8 + len(heads) % 20)
            heads.append(
                dataclasses.replace(
                    HEAD, sequence=sequence, family=next(families), ventricles=next(ventricles), removed=removed,
                    ghost=0.1 * (len(heads) % 2), snr=10.0 + 20 * (len(heads) % 3 > 0), lesions=(lesion, lesion),
                )
            )  # fmt: skip
    return [*heads, HEAD, *(Findings(kind) for kind in NOT_A_HEAD)]


def test_no_sentence_is_in_both_sets() -> None:
    said: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for findings in every_head():
        for seed in range(40):
            said["train"] |= {s.casefold().rstrip(".") for s in write_report(findings, seed, "train")}
            said["held_out"] |= {s.casefold().rstrip(".") for s in write_report(findings, seed, "held_out")}
    assert not said["train"] & said["held_out"]
    assert min(len(s) for s in said.values()) > 1000


@pytest.mark.parametrize("wordings", ["train", "held_out"])
def test_reports_state_the_findings_and_nothing_else(wordings: str) -> None:
    lesion = LesionFinding("infarct", "occipital lobe", "left", 23)
    one = dataclasses.replace(HEAD, lesions=(lesion,))
    two = dataclasses.replace(HEAD, lesions=(lesion, LesionFinding("plaque", "brainstem", "midline", 8)), snr=12.0)
    for seed in range(200):
        technique, plane, finding, ventricles = write_report(one, seed, wordings)
        assert any(word in technique for word in ("FLAIR", "luid-attenuated inversion recovery"))
        assert "axial" in plane.casefold()
        assert "occipital" in finding
        assert "left" in finding.casefold()
        assert "brainstem" not in finding
        assert "23" in finding or "there is" in finding
        assert any(word in ventricles.casefold() for word in ("enlarge", "wide"))
        assert len(write_report(two, seed, wordings)) == 7  # technique, plane, 2 lesions, ventricles, noise, total
        healthy = write_report(HEAD, seed, wordings)
        assert len(healthy) == 4
        assert "left" not in " ".join(healthy).casefold()
        for sentence in (*healthy, finding):
            assert sentence[0] == sentence[0].upper()
            assert sentence.endswith(".")
            assert "{" not in sentence
            assert " a i" not in sentence
            assert " an t" not in sentence


def test_the_seed_decides_the_words() -> None:
    assert write_report(HEAD, 5, "train") == write_report(HEAD, 5, "train")
    assert len({write_report(HEAD, seed, "train") for seed in range(50)}) > 40


def test_findings_of_a_sample_go_through_json() -> None:
    lesion = Lesion((1.0, 2.0, 3.0), (8.2, 11.6, 9.0), (1.0, 1.0, 1.0), 0.5, "frontal lobe", "right", "plaque")
    facts = {
        "plane": "sagittal", "family": "mprage", "ventricles": "narrow", "ghost": 0.02, "snr": 31.0, "removed": "face",
        "slices": 160.0, "slice_step_mm": 1.1,
    }  # fmt: skip
    sample = Sample(
        volume=np.zeros((1, 1, 1), np.float32), window=np.zeros(2, np.float32), labels=Truth("T1w", True, "head"),
        tissue=np.zeros((1, 1, 1), np.uint8), volumes_ml={}, lesions=(lesion,),
        header=Acquisition(field_strength_t=1.5), affine_lps_mm=np.eye(4), facts=facts,
    )  # fmt: skip
    findings = sample_findings(sample)
    assert findings.lesions == (LesionFinding("plaque", "frontal lobe", "right", 12),)
    assert (findings.sequence, findings.field_t, findings.slices, findings.removed) == ("T1w", 1.5, 160, "face")
    other = dataclasses.replace(sample, labels=Truth(None, False, "phantom"), lesions=())
    assert sample_findings(other) == Findings("phantom")


def test_zero_shot_prompts_are_no_templates() -> None:
    said = {sentence.casefold().rstrip(".") for findings in every_head() for seed in range(8)
            for wordings in ("train", "held_out") for sentence in write_report(findings, seed, wordings)}  # fmt: skip
    tree = ast.parse((REPOSITORY / "benchmarks" / "evidence" / "zero_shot.py").read_text(encoding="utf-8"))
    (prompts,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.AnnAssign) and node.value)
    asked = {text.casefold() for of_task in prompts.values() for text in of_task.values()}
    assert len(asked) == 13
    assert not asked & said
