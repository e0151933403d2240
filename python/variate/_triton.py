"""Registers the Triton kernels: ops `variate::triton_<op>`, and `variate::<op>` where it has no CUDA kernel.

Triton is imported when a kernel is first called: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

_DRAW = "(Tensor(a!) out, Tensor key, SymInt first_sample) -> ()"

_LINEAR_NLL = (
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, bool hidden_grad, bool weight_grad, bool bias_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_LINEAR_NLL_BACKWARD = (
    "(Tensor grad_nll, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor(a!)? grad_hidden,"
    " Tensor(b!)? grad_weight, Tensor(c!)? grad_bias, bool unit) -> ()"
)

# The schemas of the ops that have a Triton kernel, equal to those of `variate::<op>`.
SCHEMAS = {
    "bits": _DRAW,
    "uniform": _DRAW,
    "normal": _DRAW,
    "exponential": _DRAW,
    "gumbel": _DRAW,
    "bernoulli": "(Tensor(a!) out, Tensor probs, Tensor key, SymInt first_sample) -> ()",
    "randint": "(Tensor(a!) out, SymInt low, SymInt high, Tensor key, SymInt first_sample) -> ()",
    "categorical": "(Tensor logits, Tensor key, SymInt first_sample) -> Tensor",
    "fold_in": "(Tensor keys, Tensor data) -> Tensor",
    "normal_rsample": "(Tensor mean, Tensor log_var, Tensor key, SymInt first_sample) -> Tensor",
    "normal_rsample_kl": (
        "(Tensor mean, Tensor log_var, Tensor? prior_mean, Tensor? prior_log_var, Tensor? free_bits,"
        " Tensor key, SymInt first_sample) -> (Tensor, Tensor)"
    ),
    "normal_rsample_kl_backward": (
        "(Tensor? grad_z, Tensor? grad_kl, Tensor mean, Tensor log_var, Tensor? prior_mean,"
        " Tensor? prior_log_var, Tensor? free_bits, Tensor key, SymInt first_sample, bool prior_needs_grad)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "discretized_logistic_nll": ("(Tensor mean, Tensor log_scale, Tensor target, int bits, int edges) -> Tensor"),
    "discretized_logistic_nll_backward": (
        "(Tensor grad_nll, Tensor mean, Tensor log_scale, Tensor target, int bits, int edges) -> (Tensor, Tensor)"
    ),
    "discretized_logistic_mixture_nll": (
        "(Tensor params, Tensor target, int mixtures, int bits, int edges, bool channels_last) -> Tensor"
    ),
    "discretized_logistic_mixture_nll_backward": (
        "(Tensor grad_nll, Tensor params, Tensor target, int mixtures, int bits, int edges, bool channels_last)"
        " -> Tensor"
    ),
    "discretized_logistic_mixture_sample": (
        "(Tensor params, int mixtures, int bits, bool channels_last, Tensor key, SymInt first_sample) -> Tensor"
    ),
    "location_scale_rsample": (
        "(Tensor loc, Tensor scale, Tensor key, SymInt first_sample, SymInt samples, bool antithetic,"
        " int base, int parametrization) -> Tensor"
    ),
    "location_scale_rsample_backward": (
        "(Tensor grad_z, Tensor loc, Tensor scale, Tensor key, SymInt first_sample, SymInt samples,"
        " bool antithetic, int base, int parametrization) -> (Tensor, Tensor)"
    ),
    "gumbel_softmax": "(Tensor logits, Tensor? temperature, Tensor key, SymInt first_sample, bool hard) -> Tensor",
    "gumbel_softmax_backward": (
        "(Tensor grad_y, Tensor? y, Tensor? logits, Tensor? temperature, Tensor? key, SymInt first_sample) -> Tensor"
    ),
    "relaxed_bernoulli_rsample": (
        "(Tensor logits, Tensor? temperature, Tensor key, SymInt first_sample, bool hard) -> Tensor"
    ),
    "relaxed_bernoulli_rsample_backward": (
        "(Tensor grad_z, Tensor? z, Tensor? logits, Tensor? temperature, Tensor? key, SymInt first_sample) -> Tensor"
    ),
    "bernoulli_straight_through": "(Tensor logits, Tensor key, SymInt first_sample) -> Tensor",
    "normal_kl": (
        "(Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_spread, Tensor? free_bits,"
        " bool elementwise=False, int parametrization=0) -> Tensor"
    ),
    "normal_kl_backward": (
        "(Tensor grad_kl, Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_spread,"
        " Tensor? free_bits, int wanted, int parametrization=0) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "bernoulli_kl": "(Tensor logits, Tensor prior_logits, bool elementwise=False) -> Tensor",
    "bernoulli_kl_backward": ("(Tensor grad_kl, Tensor logits, Tensor prior_logits, int wanted) -> (Tensor, Tensor)"),
    "normal_nll": (
        "(Tensor mean, Tensor spread, Tensor target, bool elementwise=False, int parametrization=0) -> Tensor"
    ),
    "normal_nll_backward": (
        "(Tensor grad_nll, Tensor mean, Tensor spread, Tensor target, int wanted, int parametrization=0)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "bernoulli_nll": "(Tensor logits, Tensor target, bool elementwise=False) -> Tensor",
    "bernoulli_nll_backward": "(Tensor grad_nll, Tensor logits, Tensor target, int wanted) -> (Tensor, Tensor)",
    "categorical_nll": "(Tensor logits, Tensor target, bool needs_grad) -> (Tensor, Tensor)",
    "categorical_nll_backward": "(Tensor grad_nll, Tensor logits, Tensor target, Tensor log_sum_exp) -> Tensor",
    "categorical_kl": "(Tensor logits, Tensor prior_logits) -> Tensor",
    "categorical_kl_backward": "(Tensor grad_kl, Tensor logits, Tensor prior_logits, int wanted) -> (Tensor, Tensor)",
    "noise_and_target": (
        "(Tensor x0, Tensor? timestep, Tensor levels, int prediction, float sigma_data, float offset_noise,"
        " Tensor? noise, Tensor? mask, Tensor? key, SymInt first_sample) -> (Tensor, Tensor)"
    ),
    "denoising_loss": (
        "(Tensor prediction, Tensor target, Tensor? weight, Tensor? mask, int penalty, float delta,"
        " bool with_gradient) -> (Tensor, Tensor)"
    ),
    "denoising_loss_backward": (
        "(Tensor grad_loss, Tensor prediction, Tensor target, Tensor? weight, Tensor? mask,"
        " Tensor(a!)? grad_prediction, Tensor(b!)? grad_target, bool ready, int penalty, float delta) -> ()"
    ),
    "ema_update_": "(Tensor(a!)[] averages, Tensor[] parameters, Tensor decay) -> ()",
    "importance_weighted_bound": "(Tensor log_weight, bool leave_one_out) -> (Tensor, Tensor, Tensor, Tensor)",
    "ising_pack": "(Tensor spins, int dimensions, bool open) -> Tensor",
    "ising_unpack": "(Tensor words, SymInt width) -> Tensor",
    "ising_gibbs": (
        "(Tensor(a!) words, SymInt width, bool open, Tensor beta, Tensor coupling, Tensor field, Tensor? bonds,"
        " SymInt sweeps, SymInt first_step, Tensor(b!)? moments, SymInt measure_every, Tensor key,"
        " SymInt first_sample) -> ()"
    ),
    "ising_measure": ("(Tensor words, SymInt width, bool open, Tensor? bonds, SymInt distance) -> (Tensor, Tensor)"),
    "potts_gibbs": (
        "(Tensor(a!) states, SymInt q, bool open, Tensor beta, Tensor coupling, Tensor? field, SymInt sweeps,"
        " SymInt first_step, Tensor key, SymInt first_sample) -> ()"
    ),
    "rbm_gibbs": (
        "(Tensor(a!) visible, Tensor(b!) hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor beta,"
        " Tensor? clamp, SymInt steps, SymInt first_step, int visible_kind, int categories, Tensor(c!)? visible_probs,"
        " Tensor(d!)? hidden_probs, Tensor key, SymInt first_sample) -> ()"
    ),
    "denoise_step": (
        "(Tensor sample, Tensor output, Tensor coefficients, SymInt row, float clip=0., int wanted=0, Tensor? key=None,"
        " SymInt step=0, Tensor? history_0=None, Tensor? history_1=None, Tensor? history_2=None, Tensor? state=None,"
        " SymInt first_sample=0) -> Tensor[]"
    ),
    "denoise_step_full": (
        "(Tensor(a!)? counter, Tensor sample, Tensor output, Tensor coefficients, SymInt row, float clip, int wanted,"
        " Tensor? key, SymInt step, Tensor? history_0, Tensor? history_1, Tensor? history_2, Tensor? state,"
        " SymInt first_sample, Tensor? rows, Tensor? unconditional, Tensor? guidance, float rescale, float quantile,"
        " Tensor? variance, int variance_kind, Tensor? drawn) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "linear_bernoulli_nll": _LINEAR_NLL,
    "linear_bernoulli_nll_backward": _LINEAR_NLL_BACKWARD,
    "linear_categorical_nll": _LINEAR_NLL,
    "linear_categorical_nll_backward": _LINEAR_NLL_BACKWARD,
}

_library = torch.library.Library("variate", "FRAGMENT")


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module("variate.kernels"), name)(*args)

    return launch


def register(fakes: Mapping[str, Callable[..., Any]], cuda_ops: Collection[str]) -> dict[str, Any]:
    """Register the kernel of every op whose fake implementation is given; those of `cuda_ops` have a CUDA kernel, the
    others get Triton's under their own name too. Returns the new ops by name."""
    ops = {}
    for name in SCHEMAS.keys() & fakes.keys():
        _library.define(f"triton_{name}{SCHEMAS[name]}")
        _library.impl(f"triton_{name}", _launcher(name), "CUDA")
        torch.library.register_fake(f"variate::triton_{name}", fakes[name], lib=_library)
        ops[name] = getattr(torch.ops.variate, f"triton_{name}").default
        if name not in cuda_ops:
            _library.impl(name, _launcher(name), "CUDA")
    return ops
