"""Two engines that only run nets, from the ONNX file that PyTorch exports."""

from benchmarks import settings
from benchmarks.case import Case, Program


def onnxruntime(case: Case) -> Program:
    import onnxruntime

    images = case.images_nchw()

    def load() -> list:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.THREADS
        # Between runs its threads would wait in a loop, on the cores that the other contenders are measured on.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(case.onnx_net, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return [lambda: session.run(None, {name: images})[0]]

    return load


def openvino(case: Case) -> Program:
    import openvino

    images = case.images_nchw()

    def load() -> list:
        options = {
            "INFERENCE_NUM_THREADS": settings.THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # it would choose bfloat16 where the CPU has it
        }
        request = openvino.Core().compile_model(case.onnx_net, "CPU", options).create_infer_request()
        return [lambda: request.infer([images], share_inputs=True)[0]]

    return load
