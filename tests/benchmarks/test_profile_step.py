"""benchmarks/profile_step.py: reading compiled programs and traces, floors, and the whole program on a tiny network."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import profile_step
import pytest
from events import Event, Trace, read, shared_seconds
from hlo import Program, Shape, parse_instruction
from layers import Place, Places, named_layers
from operations import operations_of

import jaxresnet as jr
from jaxresnet.nn.summary import layers as layers_of
from jaxresnet.optim.schedules import hypers_of, per_step
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.steps import AXIS, make_steps

# What XLA makes for a GPU, shortened: calls of cuDNN and cuBLAS, a fusion of Triton's, and its own.
GPU = """\
HloModule jit_train, is_scheduled=true, entry_computation_layout={(f32[2]{0})->f32[2]{0}}

%add (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x.1, %y.1), metadata={op_name="reduce_sum"}
}

%fused_gather (param_0: u8[50000,32,32,3], param_1: s32[512,1]) -> bf16[512,32,32,3] {
  %param_0 = u8[50000,32,32,3]{3,2,1,0} parameter(0)
  %param_1 = s32[512,1]{1,0} parameter(1)
  %bitcast.1 = u8[50000,3072]{1,0} bitcast(%param_0)
  %gather.1 = u8[512,3072]{1,0} gather(%bitcast.1, %param_1), offset_dims={1}, slice_sizes={1,3072}, \
metadata={op_name="jit(train)/gather"}
  %reverse.1 = u8[512,3072]{1,0} reverse(%gather.1), dimensions={1}, metadata={op_name="jit(train)/augmentation/rev"}
  ROOT %convert.1 = bf16[512,32,32,3]{3,2,1,0} convert(%reverse.1), \
metadata={op_name="jit(train)/jvp(network)/conv1/convert_element_type"}
}

%gemm_fusion_computation (param_2: bf16[512,512], param_3: bf16[512,10]) -> bf16[512,10] {
  %param_2 = bf16[512,512]{1,0} parameter(0)
  %param_3 = bf16[512,10]{1,0} parameter(1)
  ROOT %dot.1 = bf16[512,10]{1,0} dot(%param_2, %param_3), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(train)/jvp(network)/linear/dot_general"}
}

%fused_update (param_4: f32[100,8], param_5: f32[1,8], param_6: s32[]) -> f32[100,8] {
  %param_4 = f32[100,8]{1,0} parameter(0)
  %param_5 = f32[1,8]{1,0} parameter(1)
  %param_6 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[100,8]{1,0} dynamic-update-slice(%param_4, %param_5, %param_6, %param_6)
}

ENTRY %main (a: u8[50000,32,32,3], b: s32[512,1]) -> f32[2] {
  %images = u8[50000,32,32,3]{3,2,1,0} parameter(0)
  %order = s32[512,1]{1,0} parameter(1)
  %x = bf16[512,32,32,64]{3,2,1,0} parameter(2)
  %kernel = bf16[64,3,3,64]{3,2,1,0} parameter(3)
  %weights = bf16[512,10]{1,0} parameter(4)
  %features = bf16[512,512]{1,0} parameter(5)
  %table = f32[100,8]{1,0} parameter(6)
  %row = f32[1,8]{1,0} parameter(7)
  %index = s32[] parameter(8)
  %loop_convert_fusion = bf16[512,32,32,3]{3,2,1,0} fusion(%images, %order), kind=kLoop, calls=%fused_gather, \
metadata={op_name="jit(train)/jvp(network)/conv1/convert_element_type"}
  %cudnn-conv.1 = (bf16[512,32,32,64]{3,2,1,0}, u8[1024]{0}) custom-call(%x, %kernel), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(train)/jvp(network)/jvp(stage1.0)/stage1.0.conv1/conv_general_dilated"}
  %get-tuple-element.1 = bf16[512,32,32,64]{3,2,1,0} get-tuple-element(%cudnn-conv.1), index=0
  %cudnn-conv-bw-input.1 = (bf16[512,32,32,64]{3,2,1,0}, u8[0]{0}) custom-call(%get-tuple-element.1, %kernel), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", \
metadata={op_name="jit(train)/transpose(jvp(network))/transpose(jvp(stage1.0))/stage1.0.conv1/conv_general_dilated"}
  %cudnn-conv-bw-filter.1 = (bf16[64,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, /*index=1*/%get-tuple-element.1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", \
metadata={op_name="jit(train)/transpose(jvp(network))/transpose(jvp(stage1.0))/stage1.0.conv1/conv_general_dilated"}
  %copy.9 = bf16[512,512]{0,1} copy(%features)
  %gemm_fusion = bf16[512,10]{1,0} fusion(%copy.9, %weights), kind=kCustom, calls=%gemm_fusion_computation, \
metadata={op_name="jit(train)/jvp(network)/linear/dot_general"}, backend_config={"fusion_backend_config":\
{"kind":"__triton_gemm"}}
  %custom-call.2 = (bf16[512,10]{1,0}, s8[4194304]{0}) custom-call(%features, %weights), \
custom_call_target="__cublas$gemm", metadata={op_name="jit(train)/transpose(jvp(network))/linear/dot_general"}, \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  ROOT %update = f32[100,8]{1,0} fusion(%table, %row, %index), kind=kLoop, calls=%fused_update, \
metadata={op_name="jit(train)/optimiser/add"}
}
"""


@pytest.fixture(scope="module")
def gpu():
    return Program(GPU)


def flops(program, name):
    return sum(product.flops for product in program.products(program.instructions[name]))


def test_an_instruction_is_read_whole(gpu):
    assert gpu.name == "jit_train"
    assert set(gpu.computations) == {"add", "fused_gather", "gemm_fusion_computation", "fused_update", "main"}
    conv = gpu.instructions["cudnn-conv-bw-filter.1"]
    assert conv.opcode == "custom-call" and conv.computation == "main" and not conv.is_root
    assert conv.shapes == (Shape("bf16", (64, 3, 3, 64)), Shape("u8", (0,)))
    assert conv.operands == ("x", "get-tuple-element.1")  # the comment between them is none
    assert conv.op_name.endswith("stage1.0.conv1/conv_general_dilated")
    assert gpu.instructions["update"].is_root and gpu.instructions["update"].called == ("fused_update",)
    assert [user.name for user in gpu.users["kernel"]] == ["cudnn-conv.1", "cudnn-conv-bw-input.1"]


def test_parentheses_in_layouts_and_quotes_in_names():
    result = "(f32[8,128]{1,0:T(8,128)}, pred[])"
    line = rf'  ROOT %r.1 = {result} sort(%a.b-c, %d), to_apply=%cmp, metadata={{op_name="f(\"x\")"}}'
    instruction = parse_instruction(line)
    assert instruction.shapes == (Shape("f32", (8, 128)), Shape("pred", ()))
    assert instruction.operands == ("a.b-c", "d") and instruction.called == ("cmp",)
    assert instruction.op_name == r"f(\"x\")"
    assert parse_instruction("}") is None and parse_instruction("%main (a: f32[]) -> f32[] {") is None


def test_bytes_of_types():
    assert [Shape(kind, (8,)).nbytes for kind in ("pred", "s4", "u8", "bf16", "f32", "f8e4m3fn", "c64", "token")] == [
        *(8, 4, 8, 16, 32, 8, 64, 0)
    ]


@pytest.mark.parametrize("name", ["cudnn-conv.1", "cudnn-conv-bw-input.1", "cudnn-conv-bw-filter.1"])
def test_every_pass_of_a_cudnn_convolution_costs_as_the_forward_one(gpu, name):
    assert flops(gpu, name) == 2 * 512 * 32 * 32 * 64 * 9 * 64
    (product,) = gpu.products(gpu.instructions[name])
    assert product.kind == "convolution" and product.dtype == "bf16"
    # Images, images and kernel, each once, and no scratch memory.
    assert gpu.nbytes(gpu.instructions[name]) == 2 * (2 * 512 * 32 * 32 * 64 + 64 * 9 * 64)


@pytest.mark.parametrize("name", ["gemm_fusion", "custom-call.2"])
def test_matrix_products_of_triton_and_cublas(gpu, name):
    assert flops(gpu, name) == 2 * 512 * 512 * 10
    assert gpu.products(gpu.instructions[name])[0].kind == "dot"
    assert gpu.nbytes(gpu.instructions[name]) == 2 * (512 * 512 + 512 * 10 + 512 * 10)


@pytest.mark.parametrize(
    ("line", "macs"),
    [  # the forward pass at stride 2, both gradients of it as XLA writes them, and the same for a 1x1 kernel
        ("f32[8,16,16,6] convolution(%x, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 0),
        ("f32[8,32,32,4] convolution(%dy, %k), window={size=3x3 pad=1_2x1_2 lhs_dilate=2x2 rhs_reversal=1x1}, "
         "dim_labels=b01f_01oi->b01f", 0),
        ("f32[3,3,4,6] convolution(%x, %dy), window={size=16x16 pad=1_0x1_0 rhs_dilate=2x2}, "
         "dim_labels=f01b_i01o->01bf", 0),
        ("f32[8,16,16,6] convolution(%x, %k1), window={size=1x1 stride=2x2}, dim_labels=b01f_01io->b01f", 1),
    ],
)  # fmt: skip
def test_convolutions_of_any_pass_cost_as_counted(line, macs):
    program = Program(
        "ENTRY %main () -> f32[] {\n"
        "  %x = f32[8,32,32,4] parameter(0)\n  %k = f32[3,3,4,6] parameter(1)\n  %k1 = f32[1,1,4,6] parameter(2)\n"
        f"  %dy = f32[8,16,16,6] parameter(3)\n  ROOT %c = {line}\n}}\n"
    )
    assert flops(program, "c") == 2 * 8 * 16 * 16 * 4 * 6 * (1 if macs else 9)


def test_only_what_is_touched_of_an_operand_counts(gpu):
    # 512 of 50,000 images, their numbers, and the result; one row of a table that is changed in place.
    assert gpu.nbytes(gpu.instructions["loop_convert_fusion"]) == 512 * 3072 + 4 * 512 + 2 * 512 * 3072
    assert gpu.nbytes(gpu.instructions["update"]) == 2 * 4 * 8 + 4
    assert gpu.nbytes(gpu.instructions["get-tuple-element.1"]) == 0


def test_places_on_a_gpu(gpu):
    places = Places(gpu, jr.ModelConfig())
    expected = {
        "loop_convert_fusion": Place("augmentation", ""),  # most of it, whoever it ends with
        "cudnn-conv.1": Place("stage1.0.conv1", "forward"),
        "cudnn-conv-bw-input.1": Place("stage1.0.conv1", "input gradient"),
        "cudnn-conv-bw-filter.1": Place("stage1.0.conv1", "weight gradient"),
        "gemm_fusion": Place("linear", "forward"),
        "copy.9": Place("linear", "forward"),  # has no name: of what it feeds
        "update": Place("optimiser", ""),
    }
    assert {name: places(gpu.instructions[name]) for name in expected} == expected


# ------------------------------------------------------------------------------------------------------------- traces


def plane(name, **lines):
    """lines: {name: [(name, start in ns, duration in ns, stats)]}"""
    events = {
        line: [SimpleNamespace(name=n, start_ns=s, duration_ns=d, stats=list(x.items())) for n, s, d, x in rows]
        for line, rows in lines.items()
    }
    return SimpleNamespace(name=name, lines=[SimpleNamespace(name=line, events=rows) for line, rows in events.items()])


def on_gpu(op):
    return {"hlo_op": op, "hlo_module": "jit_train"}


GPU_TRACE = [
    plane(
        "/device:GPU:0",
        **{
            "Stream #1(Compute)": [
                ("loop_convert_fusion", 100, 50, on_gpu("while.1::loop_convert_fusion")),
                # One call of cuDNN's, two kernels of it.
                ("transpose_kernel", 200, 10, on_gpu("cudnn-conv.1")),
                ("sm90_xmma_fprop", 210, 90, on_gpu("cudnn-conv.1")),
                ("update", 300, 100, {}),  # an event without names but its kernel's
                ("loop_convert_fusion", 5000, 50, on_gpu("loop_convert_fusion")),  # after the run
            ],
            "Stream #2(MemcpyH2D)": [("MemcpyH2D", 110, 10, {})],
            "XLA Ops": [("cudnn-conv.1", 200, 100, on_gpu("cudnn-conv.1"))],  # the streams again
            "Steps": [("1", 0, 1000, {})],
        },
    ),
    plane(
        "/host:CPU",
        main=[
            ("profiled run", 0, 1000, {}),
            ("PjRtStreamExecutorLoadedExecutable::ExecuteHelper", 10, 5, {}),
            ("jit_train:XLA GPU module", 12, 5, {}),
        ],
    ),
    plane("Task Environment", x=[("cudnn-conv.1", 0, 1, on_gpu("cudnn-conv.1"))]),
]


def test_a_trace_of_a_gpu(gpu):
    trace = read(GPU_TRACE)
    assert [(e.op, e.program) for e in trace.events] == [
        ("loop_convert_fusion", "jit_train"),
        ("MemcpyH2D", None),
        ("cudnn-conv.1", "jit_train"),
        ("cudnn-conv.1", "jit_train"),
        ("update", None),
    ]
    assert (trace.start, trace.end) == pytest.approx((0, 1e-6))
    assert (trace.launches, trace.copies, trace.runs) == (1, 1, {"jit_train": 1})

    peaks = {"bytes": 1e12, "bf16": 1e15}
    found = {o.name: o for o in operations_of(trace, gpu, Places(gpu, jr.ModelConfig()), peaks, steps=1)}
    assert set(found) == {"loop_convert_fusion", "cudnn-conv.1", "update", "MemcpyH2D"}
    conv = found["cudnn-conv.1"].row
    assert conv.calls == 1 and conv.seconds == pytest.approx(100e-9)
    assert conv.flops_seconds == pytest.approx(flops(gpu, "cudnn-conv.1") / 1e15)
    assert conv.floor_seconds == pytest.approx(conv.bytes / 1e12) and conv.floor_seconds > conv.flops_seconds
    assert found["loop_convert_fusion"].row.seconds == pytest.approx(45e-9)  # 10 of 50 shared with the copy
    assert {o.name: o.kind for o in found.values()} == {
        "loop_convert_fusion": "augmentation",
        "cudnn-conv.1": "convolution",
        "update": "optimiser",
        "MemcpyH2D": "other programs",
    }


def test_on_cpu_an_operation_has_the_time_that_threads_give_it():
    def stats(op):
        return {"hlo_op": op, "hlo_module": "jit_train", "run_id": 7}

    def pool(what, time, number=None):
        return (f"ThreadpoolListener::{what}", time, 0, {"_p" if what == "Record" else "_c": number} if number else {})

    host = plane(
        "/host:CPU",
        python=[("profiled run", 0, 1000, {}), ("CommonPjRtLoadedExecutable::ExecuteHelperOnSingleDevice", 5, 1, {})],
        # conv hands over two parts of its work and is done on this thread: one runs at once on the other thread, one
        # waits there until add is through. Inside of mul the thread runs something of its own, then goes on with it.
        tf_XLAEigen_1=[
            ("conv", 100, 50, stats("conv")),
            pool("Record", 110, 1),
            pool("Record", 120, 2),
            ("mul", 400, 100, stats("mul")),
            ("neg", 420, 30, stats("neg")),
        ],
        tf_XLAEigen_2=[
            pool("StartRegion", 130, 1),
            pool("StopRegion", 180),
            ("add", 200, 100, stats("add")),
            pool("StartRegion", 300, 2),
            pool("StopRegion", 340),
            pool("StartRegion", 600, 3),  # of nobody: XLA's own
            pool("StopRegion", 650),
        ],
    )
    trace = read([host])
    assert [(e.op, round(1e9 * e.start), round(1e9 * e.end), e.begins) for e in trace.events] == [
        ("conv", 100, 150, True),
        ("conv", 130, 180, False),
        ("add", 200, 300, True),
        ("conv", 300, 340, False),
        ("mul", 400, 420, True),
        ("neg", 420, 450, True),
        ("mul", 450, 500, False),
    ]
    assert trace.runs == {"jit_train": 1} and trace.launches == 1


def test_seconds_are_shared_by_what_runs_at_the_same_time():
    events = [Event("", "", None, start, end, True) for start, end in ((0, 4), (1, 3), (2, 3), (6, 7))]
    assert shared_seconds(events) == pytest.approx([1 + 1 / 2 + 1 / 3 + 1, 1 / 2 + 1 / 3, 1 / 3, 1])
    assert sum(shared_seconds(events)) == pytest.approx(5)
    assert shared_seconds([]) == []


def test_loops_on_cpu_do_not_count_beside_what_they_run():
    program = Program(
        "HloModule jit_f\n\n%body (p: f32[4]) -> f32[4] {\n"
        "  %p = f32[4] parameter(0)\n  ROOT %n = f32[4] negate(%p)\n}\n\n"
        "ENTRY %main (a: f32[4]) -> f32[4] {\n  %a = f32[4] parameter(0)\n"
        "  ROOT %w = f32[4] while(%a), condition=%cond, body=%body\n}\n"
    )
    events = [Event("w", "w", "jit_f", 0, 10, True), Event("n", "n", "jit_f", 2, 4, True)]
    trace = Trace([*events, Event("n", "n", "jit_f", 5, 7, True)], 0, 10, {}, 0, 0)
    (only,) = operations_of(trace, program, Places(program, jr.ModelConfig()), {"bytes": 1.0}, steps=2)
    assert only.name == "n" and only.row.seconds == 2 and only.row.calls == 1 and only.row.bytes == 32


# ----------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize(
    ("whole_epochs", "stages"), [(False, "11"), (True, "1")], ids=["steps", "an epoch in one dispatch"]
)
def test_the_whole_program(whole_epochs, stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(profile_step, "memory_bandwidth", lambda: 1e10)
    monkeypatch.setattr(profile_step, "best_flops", lambda precision: 1e11)

    class Engine(profile_step.Engine):
        def __init__(self, *args):
            super().__init__(*args)
            self.whole_epochs = whole_epochs

    monkeypatch.setattr(profile_step, "Engine", Engine)
    cache = jax.config.jax_enable_compilation_cache
    try:
        flags = ["--width", "6", "--stage-sizes", *stages, "--batch-size", "14", "--steps", "2"]
        profile_step.main([str(tmp_path / "profile.json"), *flags])
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)
    result = json.loads((tmp_path / "profile.json").read_text())
    printed = capsys.readouterr().out
    assert "| stage1.0.conv2 | weight gradient |" in printed and "| host, device idle |" in printed

    assert result["environment"]["num_devices"] == 1
    step = result["step_seconds"]
    assert result["busy_seconds"] + result["idle_seconds"] == pytest.approx(step)
    assert 0.2 < result["busy_seconds"] / step <= 1 and result["occupied_seconds"] >= 0.999 * result["busy_seconds"]
    for rows in (result["kinds"], result["layers"]):
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert sum(row["seconds"] for row in rows) == pytest.approx(step)
    listed = sum(row["seconds"] for row in result["operations"]) + result["smaller_operations"]["seconds"]
    assert listed == pytest.approx(result["busy_seconds"])
    for row in result["operations"]:
        assert row["floor_seconds"] == pytest.approx(max(row["flops_seconds"], row["bytes"] / 1e10))
        if row["floor_seconds"]:
            assert row["floor_share"] == pytest.approx(row["floor_seconds"] / row["seconds"])
    assert 0 < result["augmentation_share"] < 1
    assert result["program_runs_an_epoch"] == (1 if whole_epochs else 2)
    assert result["dispatches_an_epoch"] >= result["program_runs_an_epoch"]

    kinds = {row["kind"] for row in result["kinds"]}
    assert {"convolution", "elementwise and reductions", "optimiser", "augmentation", "host, device idle"} <= kinds
    # Every pass of every convolution is found, at what the library counts; the images need no gradient.
    places = {(row["layer"], row["pass"]): row for row in result["layers"]}
    config = jr.ModelConfig((1,) * len(stages), 6, pool_size=32 // len(stages))
    for layer in layers_of(config):
        for step_name in ("forward", "weight gradient", "input gradient") if layer.macs else ():
            if (layer.name, step_name) != ("conv1", "input gradient"):
                zeros = 1 / 6 if step_name == "weight gradient" else 0  # on a CPU, a row of them beside 6 or more
                assert 1 <= places[layer.name, step_name]["flops"] / (2 * 14 * layer.macs) < 1.001 + zeros, layer
    forward = sum(row["flops"] for (_, step_name), row in places.items() if step_name == "forward")
    assert forward == pytest.approx(2 * 14 * jr.count_macs(config))
    # XLA's copies of what a loop carries along can be far from anything with a name.
    assert sum(row["share"] for (layer, _), row in places.items() if layer == "other") < (
        0.02 if whole_epochs else 1e-9
    )


def test_names_of_layers_change_nothing_but_metadata():
    """What is profiled is the program that runs outside of the profiler."""
    model = jr.ModelConfig((1,), 3, pool_size=32)
    config = jr.TrainConfig(model=model, batch_size=6, val_size=0, selection="last")

    def lowered():
        steps = make_steps(config, 6, 1, "cpu")

        def step(state, plan, images, labels, rank):
            hypers = per_step(hypers_of(config.optim), 1)
            return steps.train(state, zero_totals(), hypers, images, labels, plan, 0, rank, batch_size=6)

        state = jax.eval_shape(steps.init, jax.ShapeDtypeStruct((), np.uint32))
        plan = jax.eval_shape(steps.plan, state.key, 0)
        mapped = jax.vmap(step, in_axes=(None, None, None, None, 0), axis_name=AXIS)
        arrays = (np.zeros((6, 32, 32, 3), np.uint8), np.zeros(6, np.int32), np.zeros(1, np.int32))
        return jax.jit(mapped).lower(state, plan, *arrays)

    plain = lowered()
    with named_layers():
        named = lowered()
    assert named.as_text() == plain.as_text()
    for name in ("stage1.0.conv2", "optimiser", "augmentation"):
        assert name in named.as_text(debug_info=True) and name not in plain.as_text(debug_info=True)
