"""Give every reader of this library thousands of damaged and hostile files, and count what became of them.

    python benchmarks/fuzz_readers.py results/fuzz.json --inputs 10000 --seed 0

Data sets of every layout, results, configs, weights and checkpoints. Each input must be accepted, with the right types,
or refused with an error of this library (`UserError`): no other exception, no answer after 10 s, no more than 1 GiB of
memory, no message of pages, nothing written elsewhere, no program and no connection started, no module imported by a
name in the file. Drawing and checkpoints take a fraction of --inputs, as one takes up to a second. Needs Linux or
macOS; .pth files need PyTorch (pip install -e '.[parity]').
"""

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import fuzz_targets
import fuzzing

from jaxresnet.environment import environment

# What was found with this program and mended: each has its test in tests/test_fuzz.py.
FOUND_AND_MENDED = {
    "results, measurements, evaluations: JSON nested too deep raised RecursionError, a number of thousands of digits "
    "ValueError, and one of hundreds OverflowError": "test_json_that_could_not_be_used_or_written_again",
    "results: a text that cannot be written as UTF-8, or a number that is not finite, was read, and raised when it was "
    "written again": "test_json_that_could_not_be_used_or_written_again",
    "results: settings, seeds or published figures of other types raised TypeError or ValueError in the table": (
        "test_a_config_of_which_no_table_could_be_made"
    ),
    "results: an arm or a seed too long for the name of a file raised OSError": (
        "test_an_arm_whose_files_could_have_no_name"
    ),
    "results: scores of other types raised TypeError, and messages repeated texts of 200,000 characters": (
        "test_scores_that_would_break_a_table_or_a_figure"
    ),
    "results: epochs and losses without bounds took the figure more than 10 s": "test_rows_that_would_break_a_figure",
    "results: a name with a '$' was drawn as a formula, and raised where it is none": (
        "test_hostile_names_are_drawn_and_written_as_text"
    ),
    "measurements: a missing file raised FileNotFoundError": "test_files_that_are_not_there_are_named",
    "measurements: a missing reason raised KeyError in the table; counts without bounds asked for 148 TiB of ticks": (
        "test_a_model_that_could_not_be_drawn"
    ),
    "evaluations: parts of other types raised in the middle of writing": "test_a_malformed_evaluation_names_the_part",
    "the cache: a damaged header raised TokenError, IndexError or OverflowError": (
        "test_a_cache_with_a_damaged_header_is_none"
    ),
    "the cache: arrays of other types and shapes were accepted where their checksum fitted": (
        "test_a_cache_of_wrong_arrays_is_none_whatever_its_checksum"
    ),
    "the cache: a description nested too deep raised RecursionError": (
        "test_a_cache_description_nested_too_deep_is_none"
    ),
    ".tar.gz: a member that says it has exabytes was waited for without end": (
        "test_a_tar_whose_member_says_it_has_exabytes_ends"
    ),
    ".npz: messages repeated the names in the file, of 180,000 characters, some of which a terminal obeys": (
        "test_an_npz_with_names_of_pages_gives_a_short_message"
    ),
    "TFDS: a module that features.json names was imported": "test_tfds_imports_no_module_that_a_folder_names",
    "TFDS: files beyond the folder were opened where dataset_info.json names them": (
        "test_tfds_opens_no_file_beyond_its_folder"
    ),
    "TFDS: a file format of another type raised TypeError": "test_a_tfds_folder_of_a_malformed_file_format",
    "TFDS: JSON nested too deep raised RecursionError": "test_a_tfds_description_nested_too_deep_is_no_cifar10",
    "TFDS: features of other types asked for TensorFlow (ModuleNotFoundError)": (
        "test_tfds_features_that_want_tensorflow_are_damage"
    ),
    ".safetensors: messages repeated texts of 200,000 characters": (
        "test_a_safetensors_header_of_a_million_characters_gives_a_short_message"
    ),
    ".safetensors: messages repeated characters that a terminal obeys": (
        "test_a_safetensors_with_names_that_a_terminal_obeys_gives_a_printable_message"
    ),
    "checkpoints: a record of other types raised TypeError, AttributeError or OSError": (
        "test_a_checkpoints_record_of_wrong_types_is_refused"
    ),
    "checkpoints: a record nested too deep, or of numbers without end, raised RecursionError or ValueError": (
        "test_a_checkpoints_record_nested_too_deep_is_refused"
    ),
    "checkpoints: JSON nested too deep made TensorStore crash the process": (
        "test_a_checkpoints_json_nested_too_deep_does_not_crash_the_process"
    ),
    "configs: numbers too large for float raised OverflowError, lists nested too deep RecursionError, and messages "
    "repeated texts of 200,000 characters": "test_a_config_of_damaged_values_is_refused_in_a_short_message",
    "results: a message repeated names of another config, some of which turn a terminal's text around": (
        "test_a_config_of_another_run_with_names_that_turn_text_around_gives_a_printable_message"
    ),
    "checkpoints: an error of Orbax without a text raised IndexError": "test_an_error_without_a_text_is_told_by_name",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader; slow ones take a fraction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of readers, as in the table")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # of the libraries: one line an input

    counts: dict[str, fuzzing.Count] = {}
    seconds: dict[str, float] = {}
    print("| reader | inputs | accepted | refused | failures |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as base, fuzz_targets.small_cifar10():
        for target in fuzz_targets.targets(Path(base).resolve()):
            if args.only and target.name not in args.only:
                continue
            start = time.perf_counter()
            with fuzzing.quiet():
                count = fuzzing.fuzz(target, max(1, round(args.inputs * target.share)), args.seed)
            counts[target.name], seconds[target.name] = count, time.perf_counter() - start
            row = (count.inputs, count.accepted, count.refused, len(count.failures))
            print(f"| {target.name} | {' | '.join(f'{n:,}' for n in row)} |", flush=True)
            for number, failure in list(count.failures.items())[:20]:
                print(f"  input {number}: {failure}", flush=True)
    result = {
        "environment": environment(),
        "seed": args.seed,
        "limits": {"seconds": fuzzing.SECONDS, "memory_bytes": fuzzing.MEMORY, "message_characters": fuzzing.MESSAGE},
        "readers": {name: dataclasses.asdict(count) | {"seconds": seconds[name]} for name, count in counts.items()},
        "found_and_mended": list(FOUND_AND_MENDED),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if any(count.failures for count in counts.values()):
        sys.exit("failures: see the numbers of the inputs above, which --seed makes again")


if __name__ == "__main__":
    main()
