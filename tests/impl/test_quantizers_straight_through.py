import pytest
import torch

from impl.quantizers import STE, quantize_binary, quantize_ternary, straight_through

W = [[-1.5, -0.8, -0.1, 0.0, 0.3, 1.0, 2.0]]


def gradient(ste: str, weight: list[list[float]]) -> torch.Tensor:
    latent = torch.tensor(weight, requires_grad=True)
    straight_through(latent, torch.sign(latent), ste).sum().backward()
    return latent.grad


@pytest.mark.parametrize("ste", STE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_quantised_value(ste, dtype):
    latent = torch.randn(6, 40).to(dtype).requires_grad_()
    quantized = quantize_ternary(latent)
    value = straight_through(latent, quantized, ste)
    assert value.dtype == dtype
    assert torch.equal(value, quantized.dequantize(dtype))
    value.sum().backward()
    assert torch.isfinite(latent.grad).all()


def test_identity():
    assert gradient("identity", W).tolist() == [[1] * 7]


def test_clip():
    assert gradient("clip", W).tolist() == [[0, 1, 1, 1, 1, 1, 0]]


def test_approx_sign():
    torch.testing.assert_close(gradient("approx_sign", W), torch.tensor([[0, 0.4, 1.8, 2, 1.4, 0, 0]]))


def test_swish_sign():
    # The derivative of 2 s (1 + 5 w (1 - s)) - 1 with s = sigmoid(5 w), by autograd.
    w = torch.tensor(W, requires_grad=True)
    s = torch.sigmoid(5 * w)
    (2 * s * (1 + 5 * w * (1 - s)) - 1).sum().backward()
    torch.testing.assert_close(gradient("swish_sign", W), w.grad)
    assert gradient("swish_sign", [[0.0]]).item() == 5
    assert gradient("swish_sign", [[100.0]]).item() == 0


def test_magnitude_aware():
    weight = [[0.5, -0.1, 0.0], [2.0, 0.5, -0.5]]
    torch.testing.assert_close(
        gradient("magnitude_aware", weight), torch.tensor([[0.2, 0.2, 0.2], [0.0, 1.0, 1.0]])
    )


def test_the_mean_of_a_long_half_precision_row_does_not_overflow():
    latent = torch.full((1, 4096), 0.5, dtype=torch.float16) * 200
    latent[0, 0] = 1.0
    latent.requires_grad_()
    straight_through(latent, torch.sign(latent), "magnitude_aware").sum().backward()
    assert latent.grad[0, 0].item() == pytest.approx(100, rel=1e-2)
    assert not latent.grad[0, 1:].any()


@pytest.mark.usefixtures("one_thread")
def test_latent_weights_learn_signs():
    """Sign descent on a least-squares problem reaches the target that generated it."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 16, generator=generator).sign()
    x = torch.randn(64, 16, generator=generator)
    latent = (0.1 * torch.randn(4, 16, generator=generator)).requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        weight = straight_through(latent, quantize_binary(latent), "clip")
        torch.nn.functional.mse_loss(x @ weight.T, x @ target.T).backward()
        optimizer.step()
    assert torch.equal(latent.detach().sign(), target)


@pytest.mark.parametrize(
    "quantize", [quantize_binary, lambda w, **o: quantize_ternary(w, rule="absmean", **o)]
)
def test_compiles_into_one_graph(quantize):
    def training_weight(latent: torch.Tensor) -> torch.Tensor:
        return straight_through(latent, quantize(latent, check_finite=False), "clip")

    latent = torch.randn(6, 24, requires_grad=True)
    compiled = torch.compile(training_weight, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(latent), training_weight(latent))
    compiled(latent).sum().backward()
    assert torch.equal(latent.grad, (latent.abs() <= 1).float())


def test_refusals():
    latent = torch.randn(2, 8)
    with pytest.raises(ValueError, match="did you mean 'clip'"):
        straight_through(latent, latent, "clipp")
    with pytest.raises(ValueError, match="do not belong"):
        straight_through(latent, latent[:1], "clip")
