"""Each mathematical claim has a mutation that some test catches: the mutants are made here, and must not survive."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

LANGEVIN, CD = (
    "tests/statistical/test_langevin.py",
    "tests/statistical/test_contrastive_divergence.py",
)
SAMPLERS, RBM, DIAGNOSTICS = (
    f"tests/statistical/test_{name}.py" for name in ("samplers", "rbm", "diagnostics")
)
SAMPLING, CONDITIONAL = (
    "tests/statistical/test_sampling.py",
    "tests/statistical/test_conditional_suites.py",
)
MEG, ANOMALY = "tests/statistical/test_meg.py", "tests/unit/test_anomaly_data.py"
NOISE = "tests/statistical/test_noise_contrastive.py"
FAST_LAYERS = "tests/unit/test_cpu_layers.py"
ADAM = "tests/integration/test_trainer.py::test_kernels_that_lie_channels_last_learn_as_adam_says_also_after_a_restart"
BAND_POWER = "tests/statistical/test_band_power.py"
LADDER_ANCESTRAL = "tests/statistical/test_ladder.py::test_ancestral_steps_draw_from_the_data"
TEMPERED = "tests/statistical/test_contrastive_divergence.py::test_tempered_chains_persist_and_the_coldest_are_the_negatives"
STREAMING = "tests/unit/test_streaming.py"
DISCRIMINATIVE = "tests/statistical/test_discriminative.py"
REJECTION = "tests/statistical/test_accept_reject.py"
EXCHANGE = "tests/statistical/test_exchange.py"
CHAINS, TASKS = "tests/statistical/test_chains_suite.py", "tests/statistical/test_tasks.py"
DIRECTIONS, FLOATS = (
    "tests/unit/test_suite_needs.py::"
    "test_chains_are_followed_in_the_directions_in_which_the_data_vary",
    "tests/unit/test_suite_needs.py::test_synthetic_sets_keep_the_values_of_floats",
)
GEWEKE, BOUNDS = (
    f"{SAMPLERS}::test_exact_draws_stay_exact_at_every_step",
    f"{SAMPLERS}::test_bounds_leave_the_sampler_exact",
)
HALF, KEPT = (
    f"{SAMPLERS}::test_what_is_not_finite_is_rejected_and_counted",
    f"{SAMPLERS}::test_a_rejected_chain_keeps_position_energy_and_score",
)
API_TRAINING, API_SAMPLING, API_MODEL = (
    f"tests/unit/test_api_{name}.py" for name in ("training", "sampling", "model")
)
BLOCKS = "tests/statistical/test_blocks.py"
MIXTURE = "tests/statistical/test_mixture.py"
CHAIN_FREE, DISCRETE, LADDER, ANNEALING = (
    f"tests/statistical/test_{name}.py"
    for name in ("chain_free", "discrete_samplers", "ladder", "annealing")
)
MUTANTS = {  # what is broken: (file, right, wrong, the test that must notice)
    "sign of the score": ("energies/__init__.py", "return value.detach(), -gradient", "return value.detach(), gradient", LANGEVIN),
    "no noise": ("samplers/langevin.py", "alpha=config.noise_scale)", "alpha=0.0)", LANGEVIN),
    "noise in variance, not deviation": ("samplers/langevin.py", "alpha=config.noise_scale)", "alpha=config.noise_scale**2)", LANGEVIN),
    "half the drift": ("samplers/langevin.py", "alpha=float(step_size))", "alpha=float(step_size) / 2)", LANGEVIN),
    "no clamp": ("samplers/langevin.py", "x.clamp_(*bounds)", "pass", LANGEVIN),
    "one noise for all chains": ("samplers/__init__.py", "size = (n, *x.shape)", "size = (n, *x.shape[1:])", LANGEVIN),
    "wrong temperature": ("samplers/langevin.py", "/ (2 * self.step_size)", "/ self.step_size", LANGEVIN),
    "sign of the loss": ("objectives/contrastive_divergence.py", "loss = mean_pos - mean_neg", "loss = mean_neg - mean_pos", CD),
    "half the penalty": ("objectives/contrastive_divergence.py", "self.config.energy_penalty * penalty", "self.config.energy_penalty * penalty / 2", CD),
    "chains are not kept": ("objectives/contrastive_divergence.py", "context.replay.put(draw, ends)", "pass", CD),
    "wrong labels are the right ones": ("objectives/contrastive_divergence.py", "(batch.y - first + k) % num_classes", "(batch.y - first + k + 1) % num_classes", CD),
    "temperature of labels twice": ("objectives/contrastive_divergence.py", "n).T / temperature", "n).T", CD),
    "gradient flows through the chain": ("objectives/contrastive_divergence.py", "len(shifts), negative])", "len(shifts), positive])", CD),
    "burn-in counts": ("objectives/contrastive_divergence.py", "(draw.age >= self.config.burn_in)", "(draw.age >= 0)", CD),
    "left out, but divided by": ("objectives/contrastive_divergence.py", "counts.sum().clamp(min=1)", "n", CD),
    "chains of the last task stay": ("training/trainer.py", "chains.restart(classes, generator)", "pass", TASKS),
    "data of the last task stays": ("training/trainer.py", "shard: data.only(classes) for", "shard: data for", TASKS),
    "moments of the last task stay": ("training/trainer.py", "            self.optimizers = self.new_optimizers()\n", "", TASKS),
    "a task goes on from the last weights": ("training/trainer.py", "network.load_state_dict(self.averages[name].state_dict())", "pass", TASKS),
    "gates stay open": ("energies/mlp.py", "h = h * self.get_buffer", "h = h + 0 * self.get_buffer", TASKS),
    "labels of the first task": ("objectives/contrastive_divergence.py", "(first + (batch.y - first + k) % num_classes", "((batch.y + k) % num_classes", TASKS),
    "classes not seen yet": ("evaluation/continual.py", "energy, x, (after + 1) * per_task)", "energy, x, num_classes)", TASKS),
    "Gaussians without their volume": ("evaluation/continual.py", " / 2 + factor.diagonal().log().sum()", " / 2", TASKS),
    "chains keep their labels": ("objectives/contrastive_divergence.py", "draw = draw._replace(label=batch.y.roll(1))", "pass", CD),
    "every chain is of its image's class": ("objectives/contrastive_divergence.py", "batch.y.roll(1)", "batch.y", CD),
    "no gradient through the chain": ("objectives/contrastive_divergence.py", "self.config.kl_weight * self._kl(negative, labels, context)", "0.0", CD),
    "gradient of the energy at the end, too": ("objectives/contrastive_divergence.py", "        with frozen(energy):\n            term", "        if True:\n            term", CD),
    "no entropy": ("objectives/contrastive_divergence.py", "term - self.config.entropy_weight *", "term - 0 *", CD),
    "nearest to itself": ("objectives/contrastive_divergence.py", 'float("inf")', "0.0", CD),
    "completions attract": ("objectives/composite_likelihood.py", "gap = energy_pos.mean() - energy_neg.mean()", "gap = energy_neg.mean() - energy_pos.mean()", CD),
    "completions without their label": ("objectives/composite_likelihood.py", "given(energy, y)", "given(energy, None if y is None else y * 0)", CD),
    "what is kept moves": ("objectives/composite_likelihood.py", "target(torch.where(hidden, z, x))", "target(z)", CD),
    "only lower halves": ("objectives/composite_likelihood.py", "torch.stack([above, ~above, left, ~left])", "torch.stack([~above] * 4)", CD),
    "half the penalty of completions": ("objectives/composite_likelihood.py", "(energy**2).mean() * 2", "(energy**2).mean()", CD),
    "a ring that forgets the newest": ("chains/replay.py", "(self.count + order) % capacity", "(self.count * 0 + order) % capacity", "tests/unit/test_replay.py"),
    "a reservoir that takes all": ("chains/replay.py", "generator=generator, device=drawn.device) < prob)", "generator=generator, device=drawn.device) < 1 + prob)", "tests/unit/test_replay.py"),
    "crops of uniform area": ("chains/augmentation.py", "(uniform(1.0).add(1).div(4) * math.log(_LEAST_AREA)).exp()", "uniform(1.0).add(1).div(2) * (1 - _LEAST_AREA**0.5) + _LEAST_AREA**0.5", "tests/unit/test_augmentation.py"),
    "crops in the middle": ("chains/augmentation.py", "uniform(1.0) * (1 - side)], dim=1)\n    bottom", "0 * side], dim=1)\n    bottom", "tests/unit/test_augmentation.py"),
    "a long run that never leaves": ("evaluation/long_run.py", 'if low <= row["median"] <= high]', "]", CHAINS),
    "a product of one": ("evaluation/composition.py", "torch.stack([subject.model.energy(x, y) for y in labels.T]).sum(dim=0)", "subject.model.energy(x, labels[:, 0])", CONDITIONAL),
    "information goes down": ("objectives/meg.py", 'Turn("statistics", -of_fixed', 'Turn("statistics", of_fixed', MEG),
    "information without its mean": ("objectives/meg.py", " - math.log(len(x)))", ")", MEG),
    "information of one kind": ("objectives/meg.py", "x, z, self.config.information)", "x, z)", MEG),
    "the generator lowers it": ("objectives/meg.py", "loss.mean() - self._mi_weight", "loss.mean() + self._mi_weight", MEG),
    "every latent with its own sample": ("objectives/meg.py", "z.roll(1, dims=0)", "z", MEG),
    "a penalty on samples, not data": ("objectives/meg.py", "gradient_penalty * squared_norm_pos", "gradient_penalty * squared_norm_neg", MEG),
    "a penalty on the norm": ("objectives/meg.py", "(gradient**2).flatten(1).sum(dim=1).chunk(2)", "(gradient**2).flatten(1).sum(dim=1).sqrt().chunk(2)", MEG),
    "a penalty without gradient": ("objectives/meg.py", "create_graph=True", "retain_graph=True", MEG),
    "pairs the wrong way round": ("objectives/meg.py", "F.softplus(energy_pos - energy_neg)", "F.softplus(energy_neg - energy_pos)", MEG),
    "the generator is not compared": ("objectives/meg.py", "loss = F.softplus(energy - self.players", "loss = F.softplus(energy - 0 * self.players", MEG),
    "the generator in the other steps": ("objectives/meg.py", "(context.step + 1) % self.config.num_energy_steps", "context.step % self.config.num_energy_steps", MEG),
    "the weight does not change": ("objectives/meg.py", "(last - first) * step / self.num_steps", "0.0", MEG),
    "sign of a flow's determinant": ("generators/flow.py", "standard_normal(z) - log_det", "standard_normal(z) + log_det", NOISE),
    "a Gaussian about zero": ("generators/gaussian.py", "d = x.flatten(1) - self.mean", "d = x.flatten(1)", NOISE),
    "the wrong half is given off": ("generators/glow.py", "torch.cat([halves[level], h], dim=1)", "torch.cat([h, halves[level]], dim=1)", NOISE),
    "noise learns by its density alone": ("objectives/noise_contrastive.py", "energy = self.energy(torch.cat([batch.x, x]))", "energy = self.energy(torch.cat([batch.x, x.detach()]))", NOISE),
    "noise learns by its samples alone": ("objectives/noise_contrastive.py", "self.log_z().detach(), torch.cat([log_q_data, log_q_noise])", "self.log_z().detach(), torch.cat([log_q_data, log_q_noise]).detach()", NOISE),
    "the noise ascends the value": ("objectives/noise_contrastive.py", "-minus_value if", "minus_value if", NOISE),
    "odds without the ratio": ("objectives/noise_contrastive.py", "log_ratio_data - log_nu, log_ratio_noise - log_nu, ratio", "log_ratio_data, log_ratio_noise, ratio", NOISE),
    "all noise counts as one": ("objectives/noise_contrastive.py", "- ratio * F.softplus(u_noise)", "- F.softplus(u_noise)", NOISE),
    "sign of the constant": ("objectives/noise_contrastive.py", "-energy - log_z - log_q", "-energy + log_z - log_q", NOISE),
    "saturated odds": ("objectives/noise_contrastive.py", "-F.softplus(-u_data).mean()", "torch.sigmoid(u_data).log().mean()", NOISE),
    "the wrong one's turn": ("objectives/noise_contrastive.py", "are_told_apart != bool(state.is_noises)", "are_told_apart == bool(state.is_noises)", NOISE),
    "turns by one step's accuracy": ("objectives/noise_contrastive.py", "1 - config.accuracy_decay", "1.0", NOISE),
    "only losses are guarded": ("training/trainer.py", "in turn.energies.values()", "in ()", "tests/integration/test_trainer.py::test_the_guard_takes_the_energies_of_a_turn_else_its_loss"),
    "each rank decides for itself": ("training/trainer.py", "objective.observe(self.step, self.mean_over_shards(row))", "objective.observe(self.step, {k: float(v.mean()) for k, v in row.items()})", f"{NOISE}::test_a_resumed_run_and_any_number_of_workers_take_the_same_turns"),
    "labels of others": ("objectives/semi_supervised.py", "F.cross_entropy(logits_labelled, y)", "F.cross_entropy(logits_labelled, y.roll(1))", NOISE),
    "divergence the other way round": ("objectives/semi_supervised.py", "_divergence(logits_data.detach(), logits_near)", "_divergence(logits_near, logits_data.detach())", NOISE),
    "both predictions move": ("objectives/semi_supervised.py", "_divergence(logits_data.detach(), logits_near)", "_divergence(logits_data, logits_near)", NOISE),
    "an adversary at random": ("objectives/semi_supervised.py", "return _of_norm(gradient,", "return _of_norm(step.detach(),", NOISE),
    "entropy rises": ("objectives/semi_supervised.py", "+ ramp * config.entropy_weight * entropy", "- ramp * config.entropy_weight * entropy", NOISE),
    "no temperature of labels": ("objectives/semi_supervised.py", "-energy(x, y) / self.config.label_temperature", "-energy(x, y)", NOISE),
    "more classes, more mass": ("energies/classifier.py", "math.log(f.shape[1]) - f.logsumexp(dim=1)", "-f.logsumexp(dim=1)", NOISE),
    "the rest keeps its labels": ("datasets/few_labels.py", "Arrays(x, None)", "Arrays(x, y)", NOISE),
    "one draw of labels for all seeds": ("data/shards.py", "seed % draws", "seed * 0", NOISE),
    "half a divergence": ("evaluation/density.py", "(grid_kl(log_p, middle) + grid_kl(log_q, middle)) / 2", "grid_kl(log_p, middle) / 2", NOISE),
    "weights the wrong way": ("evaluation/density.py", "-energy_noise - log_q_noise", "-energy_noise + log_q_noise", NOISE),
    "squares of side, not area": ("datasets/toy2d.py", "len(self.centres) * self.side**2", "len(self.centres) * self.side", NOISE),
    "errors of calibration cancel": ("evaluation/classification.py", "share * abs(accuracy - mean)", "share * (accuracy - mean)", NOISE),
    "twice the prior": ("generators/__init__.py", "self.prior_weight / 2 *", "self.prior_weight *", MEG),
    "a density that is not normalised": ("datasets/toy2d.py", "np.log(2 * np.pi * self.sd**2)", "np.log(np.pi * self.sd**2)", MEG),
    "the other KL": ("evaluation/density.py", "np.exp(log_p[support]) * (log_p[support] - log_q[support])", "np.exp(log_q[support]) * (log_q[support] - log_p[support])", MEG),
    "modes that only bad samples hit": ("evaluation/density.py", "np.unique(mode[distance < _GOOD])", "np.unique(mode)", MEG),
    "all but the highest class": ("evaluation/anomaly.py", "labels[rows] == anomalous", "labels[rows] != anomalous", ANOMALY),
    "one covariance of all classes": ("evaluation/anomaly.py", "np.cov(flat - means[labels], rowvar=False)", "np.cov(flat, rowvar=False)", ANOMALY),
    "far from the nearest class": ("evaluation/anomaly.py", "means @ root).min(axis=1)", "means @ root).max(axis=1)", ANOMALY),
    "low energies are anomalies": ("evaluation/anomaly.py", "np.partition(scores, -count)[-count]\n    above, tied = scores > lowest", "np.partition(scores, count - 1)[count - 1]\n    above, tied = scores < lowest", ANOMALY),
    "ties are all drawn": ("evaluation/anomaly.py", "share * truth[tied].sum()", "truth[tied].sum()", ANOMALY),
    "ties are never drawn": ("evaluation/anomaly.py", "share * truth[tied].sum()", "0", ANOMALY),
    "the other area": ("evaluation/anomaly.py", "average_precision_score(truth, scores)", "roc_auc_score(truth, scores)", ANOMALY),
    "a ceiling of fewer samples": ("evaluation/modes.py", "(count, digits.shape[1])", "(count // 40, digits.shape[1])", ANOMALY),
    "floor and model at their own numbers": ("evaluation/samples.py", "samples[:n]", "samples", "tests/unit/test_scores.py"),
    "copies by the smallest distance": ("evaluation/samples.py", "unseen.median() / 2", "real_distance.min()", "tests/unit/test_scores.py"),
    "duplicates move the limit": ("evaluation/samples.py", "real_distance[real_distance > 0]", "real_distance[:20]", "tests/unit/test_scores.py"),
    "empty modes count": ("evaluation/modes.py", "float(len(present))", "float(len(shares))", ANOMALY),
    "nothing is turned": ("chains/augmentation.py", "uniform(math.pi)", "uniform(0.0)", "tests/unit/test_augmentation.py"),
    "nothing is mirrored": ("chains/augmentation.py", "-1.0, 1.0)\n    angle", "1.0, 1.0)\n    angle", "tests/unit/test_augmentation.py"),
    "no crop is mirrored": ("chains/augmentation.py", "-1.0, 1.0)\n    side", "1.0, 1.0)\n    side", "tests/unit/test_augmentation.py"),
    "every chain is turned": ("chains/augmentation.py", ".div(2) < prob, torch.where(uniform(1.0) < 0, -1.0, 1.0)\n    angle", ".div(2) < 1, torch.where(uniform(1.0) < 0, -1.0, 1.0)\n    angle", "tests/unit/test_augmentation.py"),
    "classes have constants": ("models/trained.py", "(energies if self.knows_labels else (energies - mean) / sd)", "(energies if self.knows_labels else energies / sd)", "tests/unit/test_reports.py"),
    "classes have scales": ("models/trained.py", "- mean[labels]) / sd[labels]", "- mean[labels])", "tests/unit/test_reports.py"),
    "labels that were learnt are not used": ("models/trained.py", "if not self.knows_labels:", "if True:", API_MODEL),
    "no age is too old": ("chains/replay.py", "restart |= self.age[drawn] >= self.max_age", "pass", "tests/unit/test_replay.py"),
    "every shard has the same stream": ("rng.py", "{seed}/{purpose}/{shard}/{step}", "{seed}/{purpose}/{step}", "tests/integration/test_trainer.py::test_logical_shards_differ"),
    "every step has the same stream": ("rng.py", "{seed}/{purpose}/{shard}/{step}", "{seed}/{purpose}/{shard}", "tests/unit/test_rng.py"),
    "32-bit seeds": ("rng.py", "return generator.set_state(state)", "return generator.manual_seed(seed & 0xFFFFFFFF)", "tests/unit/test_rng.py"),
    "gradients are not averaged": ("training/reduce.py", "total.div_(self.num_shards)", "total", CD),
    "restarts keep their age": ("chains/replay.py", "torch.where(restart, 0, self.age[drawn])", "self.age[drawn]", "tests/unit/test_replay.py"),
    "Frechet without the shift": ("metrics/features.py", "squared = shift @ shift +", "squared = 0 +", "tests/unit/test_scores.py"),
    "ties count nothing": ("evaluation/ood.py", "below + counts_out / 2", "below", "tests/unit/test_scores.py"),
    "who falls is known": ("evaluation/ood.py", "target(start) - target(end)", "target(end) - target(start)", "tests/unit/test_scores.py"),
    "one unit for all classes": ("evaluation/ood.py", ".class_energies[1][labels]", ".class_energies[1][0]", "tests/unit/test_scores.py"),
    "the least likely class": ("models/trained.py", "(energies - mean) / sd).argmin(dim=1)", "(energies - mean) / sd).argmax(dim=1)", "tests/unit/test_scores.py"),
    "an image lends to itself": ("evaluation/completion.py", "allowed[torch.arange(len(x)), rows_of_train] = False", "pass", CONDITIONAL),
    "any class lends": ("evaluation/completion.py", "distance[~allowed] = torch.inf", "pass", CONDITIONAL),
    "accepts uphill": ("samplers/metropolis.py", "(state.energy - energy) / config", "(energy - state.energy) / config", GEWEKE),
    "always accepts": ("samplers/__init__.py", "return is_finite & (log_u < log_ratio)", "return is_finite", GEWEKE),
    "zero accepts all": ("samplers/__init__.py", "uniform.clamp_(min=torch.finfo(uniform.dtype).eps / 2)", "uniform", SAMPLERS),
    "starts from where no chain moves": ("samplers/__init__.py", "        if checks_start:\n            check_start(state)", "        pass", SAMPLERS),
    "accepts the batch": ("samplers/__init__.py", "(log_u < log_ratio)", "(log_u < log_ratio.mean())", GEWEKE),
    "one uniform for all chains": ("samplers/__init__.py", "uniform = torch.rand(size,", "uniform = torch.rand((*size[:-1], 1),", SAMPLERS),
    "accepts what is not finite": ("samplers/__init__.py", "return is_finite & (log_u", "return (log_u", HALF),
    "independence without its density": ("samplers/metropolis.py", "(drawn**2 - x**2)", "0 * (drawn**2 - x**2)", GEWEKE),
    "independence with its density upside down": ("samplers/metropolis.py", "(drawn**2 - x**2)", "(x**2 - drawn**2)", GEWEKE),
    "walk is clamped": ("samplers/metropolis.py", "reflect(proposal, bounds)[0]", "proposal.clamp(*bounds)", BOUNDS),
    "walk at temperature 1": ("samplers/metropolis.py", " / config.temperature + log_q", " + log_q", f"{SAMPLERS}::test_temperature_scales_the_variance"),
    "MALA without the square": ("samplers/mala.py", "-(distance**2)", "-distance", f"{SAMPLERS}::test_mala_with_the_squared_norm"),
    "MALA without its proposal density": ("samplers/mala.py", " + log_q(x, new.position, new.score) - log_q(new.position, x, state.score)", "", GEWEKE),
    "MALA with its density upside down": ("samplers/mala.py", "log_q(x, new.position, new.score) - log_q(new.position, x, state.score)", "log_q(new.position, x, state.score) - log_q(x, new.position, new.score)", GEWEKE),
    "MALA accepts uphill": ("samplers/mala.py", "(state.energy - new.energy) / temperature", "(new.energy - state.energy) / temperature", GEWEKE),
    "MALA goes uphill": ("samplers/mala.py", "x + a * state.score +", "x - a * state.score +", f"{SAMPLERS}::test_mala_with_the_squared_norm"),
    "MALA without noise": ("samplers/mala.py", "temperature) ** 0.5 * noise", "temperature) ** 0.5 * 0 * noise", GEWEKE),
    "MALA with the score of a rejected proposal": ("samplers/mala.py", "select(is_accepted, new, state)", "select(is_accepted, new, state)._replace(score=new.score)", KEPT),
    "MALA outside": ("samplers/mala.py", "is_finite & inside,", "is_finite,", BOUNDS),
    "HMC accepts uphill": ("samplers/hmc.py", "start - new.energy / temperature - kinetic(momentum),", "new.energy / temperature + kinetic(momentum) - start,", GEWEKE),
    "HMC without kinetic energy": ("samplers/hmc.py", "+ kinetic(momentum)\n", "\n", GEWEKE),
    "HMC without momentum": ("samplers/hmc.py", "momentum, uniform, log_u = randomness", "momentum, uniform, log_u = 0 * randomness[0], *randomness[1:]", GEWEKE),
    "HMC with a whole step for a half": ("samplers/hmc.py", "half, new.score)\n            x =", "2 * half, new.score)\n            x =", f"{SAMPLERS}::test_gaussian_of_condition_number_100"),
    "HMC does not turn at bounds": ("samplers/hmc.py", "torch.where(reversed_, -momentum, momentum)", "momentum", BOUNDS),
    "HMC with the energy of a rejected proposal": ("samplers/hmc.py", "select(is_accepted, new, state)", "select(is_accepted, new, state)._replace(energy=new.energy)", KEPT),
    "mirrored once only": ("samplers/__init__.py", "(x - low) % (2 * width)", "x - low", f"{SAMPLERS}::test_a_path_is_mirrored_as_often_as_it_must"),
    "Gibbs leaves a block out": ("samplers/gibbs.py", "torch.arange(num_blocks)", "torch.arange(1)", f"{SAMPLERS}::test_gibbs_on_an_enumerated_ising_lattice"),
    "swaps the wrong way": ("chains/tempering.py", "(beta[r] - beta[r + 1])", "(beta[r + 1] - beta[r])", f"{SAMPLERS}::test_tempering_keeps_the_target_exact_at_every_temperature"),
    "swaps always": ("chains/tempering.py", "(beta[r] - beta[r + 1])", "0 * (beta[r] - beta[r + 1])", f"{SAMPLERS}::test_tempering_keeps_the_target_exact_at_every_temperature"),
    "the energy before the swap": ("chains/tempering.py", "Info(energy[0],", "Info(info.energy[:n],", f"{SAMPLERS}::test_tempering_reports_the_energy_and_score_of_the_position_after_the_swap"),
    "swaps and keeps the old energy": ("chains/tempering.py", "inner = kernel.init(heated_target, scaled(x.flatten(0, 1), -0.5))", "inner = inner._replace(position=scaled(x.flatten(0, 1), -0.5))", f"{SAMPLERS}::test_tempering_keeps_the_target_exact_at_every_temperature"),
    "exchanges the wrong way": ("chains/exchange.py", "near(x[r]) + far(x[r + 1]) - near(x[r + 1]) - far(x[r])", "near(x[r + 1]) + far(x[r]) - near(x[r]) - far(x[r + 1])", f"{EXCHANGE}::test_every_replica_has_its_distribution"),
    "exchanges always": ("chains/exchange.py", "accept_mask(log_ratio, ", "accept_mask(0 * log_ratio, ", f"{EXCHANGE}::test_every_replica_has_its_distribution"),
    "exchanges the same pairs": ("chains/exchange.py", "Journey(not self.is_odd,", "Journey(self.is_odd,", f"{EXCHANGE}::test_round_trips_of_replicas_that_always_swap"),
    "a ladder by its rates alone": ("chains/exchange.py", "np.cumsum(refusal_rates)", "np.array(refusal_rates)", f"{EXCHANGE}::test_equal_parts_of_the_barrier"),
    "replicas that start again": ("chains/eager.py", "replicas=position.transpose(0, 1),", "replicas=None,", TEMPERED),
    "the hottest as negatives": ("chains/eager.py", "return ends[:, 0]", "return ends[:, -1]", TEMPERED),
    "the hottest exported": ("models/trained.py", 'chains["position"][:, 0]', 'chains["position"][:, -1]', TEMPERED),
    "temperatures of another kernel": ("chains/tempering.py", "1 / (temperature * torch", "1 / (1.0 * torch", f"{SAMPLERS}::test_temperatures_are_multiples_of_that_of_the_kernel"),
    "a window of other packs": ("data/loader.py", "lambda: self._rows_of(windows[number])", "lambda: self._rows_of(windows[0])", STREAMING),
    "packs in one order": ("data/loader.py", 'numpy_stream(self.seed, "packs", self.shard, epoch)', 'numpy_stream(self.seed, "packs", self.shard, 0)', STREAMING),
    "a pack that is not verified": ("data/shards.py", "if pack.sha256 and hashlib", "if not pack.sha256 and hashlib", STREAMING),
    "blocks in the order of the source": ("data/streamed.py", ".permutation(len(x))", ".permutation(len(x)) * 0 + np.arange(len(x))", STREAMING),
    "shards that share no tar": ("data/loader.py", "np.arange(first, reader.num_samples, step)", "np.arange(reader.num_samples)", STREAMING),
    "an anchor that repels": ("training/trainer.py", "gradient + config.anchor_weight * torch.cat(moved)", "gradient - config.anchor_weight * torch.cat(moved)", f"{TASKS}::test_an_anchor_draws_the_weights_back_to_those_of_the_previous_task"),
    "hinge the wrong way": ("objectives/discriminative.py", "F.relu(m + e.right - e.offending)", "F.relu(m - e.right + e.offending)", DISCRIMINATIVE),
    "hinge without a margin": ("objectives/discriminative.py", "F.relu(m + e.right", "F.relu(e.right", DISCRIMINATIVE),
    "squares without the wrong label": ("objectives/discriminative.py", "e.right**2 + F.relu(m - e.offending) ** 2", "e.right**2", DISCRIMINATIVE),
    "the right label offends": ("objectives/discriminative.py", "wrong = every.masked_fill(is_right, torch.inf)", "wrong = every", DISCRIMINATIVE),
    "free energy without temperature": ("objectives/discriminative.py", "-temperature * (-self.all", "-1 * (-self.all", DISCRIMINATIVE),
    "a ladder that is not adapted": ("evaluation/chains.py", "betas, _ = exchange.adapt_ladder(trial, betas, _ROUNDS)", "exchange.adapt_ladder(trial, betas, _ROUNDS)", f"{CHAINS}::test_a_warm_up_adapts_the_step_size"),
    "rejection uphill": ("samplers/rejection.py", "log_ratio = -new /", "log_ratio = new /", REJECTION),
    "rejection without its proposals": ("samplers/rejection.py", "/ config.temperature - log_q", "/ config.temperature", REJECTION),
    "rejection without a temperature": ("samplers/rejection.py", "-new / config.temperature", "-new", REJECTION),
    "rejection takes the last": ("samplers/rejection.py", "is_taken = waits & is_accepted", "is_taken = waits", REJECTION),
    "rejection by a bound that is none": ("samplers/rejection.py", "torch.maximum(log_bound, highest)", "log_bound", REJECTION),
    "weights of another density": ("metrics/importance.py", "(2 * log_w).logsumexp", "log_w.logsumexp", REJECTION),
    "adapts away": ("chains/adaptation.py", "deficit += target_rate", "deficit -= target_rate", f"{SAMPLERS}::test_adaptation_reaches_its_acceptance"),
    "hidden bias of the wrong sign": ("energies/rbm.py", "return self.hidden_bias + v", "return -self.hidden_bias + v", RBM),
    "visible units without bias": ("energies/rbm.py", "return self.visible_bias + h", "return h", f"{RBM}::test_exact_draws_stay_exact_after_sweeps"),
    "hidden units are not drawn": ("energies/rbm.py", "h = bernoulli(self.hidden_input(v).sigmoid(), generator)", "h = self.hidden_input(v).sigmoid()", f"{RBM}::test_exact_draws_stay_exact_after_sweeps"),
    "centre of the wrong sign": ("energies/rbm.py", "self.hidden_bias - self.visible_offset", "self.hidden_bias + self.visible_offset", RBM),
    "AIS with its biases the wrong way": ("metrics/ais.py", "(new - old) * (v @", "(old - new) * (v @", RBM),
    "AIS without 2^hidden": ("metrics/ais.py", " + len(weights.hidden_bias) * math.log(2)", "", RBM),
    "AIS without annealed biases": ("metrics/ais.py", "(1 - new) * base + new * weights.visible_input(h)", "weights.visible_input(h)", RBM),
    "annealing with weights upside down": ("metrics/annealing.py", "(of_base - of_energy)", "(of_energy - of_base)", ANNEALING),
    "annealing that takes the mixture for the energy": ("metrics/annealing.py", "(state.energy - (1 - new) * of_base) / new", "state.energy", ANNEALING),
    "annealing without the base's log Z": ("metrics/annealing.py", "F.softplus(base.double()).sum().item()", "0.0", ANNEALING),
    "a reverse run that is read forwards": ("metrics/ais.py", "    if is_reverse:", "    if False:", ANNEALING),
    "a short schedule starts late": ("metrics/ais.py", "max(round(num_betas / 29), 1)", "round(num_betas / 29)", RBM),
    "R-hat without folds": ("chains/diagnostics.py", "_plain_rhat(_normal_scores(folds))", "0", DIAGNOSTICS),
    "stuck chains have a full sample size": ("chains/diagnostics.py", "np.where(constant | np.isnan(total), np.nan, effective)", "np.where(np.isnan(total), np.nan, np.where(constant, size, effective))", DIAGNOSTICS),
    "a constant dimension hides the others": ("chains/diagnostics.py", "np.max(rhat(x)[varies])", "np.max(rhat(x))", DIAGNOSTICS),
    "no monotone sequence": ("chains/diagnostics.py", "np.minimum.accumulate(pairs, axis=0)", "pairs", DIAGNOSTICS),
    "starts are not compared": ("evaluation/chains.py", '"both": list(runs.values())', '"both": list(runs.values())[:1]', CHAINS),
    "classes are pooled": ("evaluation/chains.py", "for y in np.unique(classes)]", "for y in [0]] and [draws]", CHAINS),
    "the warm-up is judged": ("evaluation/chains.py", "config.num_draws // 2 :", "0 :", CHAINS),
    "components in no order": ("evaluation/chains.py", "values.flip(0)[:num]", "values[-num:]", CHAINS),
    "directions without variance": ("evaluation/chains.py", "int((values > smallest).sum())", "len(values)", DIRECTIONS),
    "floats are rounded to integers": ("metrics/ood_images.py", "np.issubdtype(stored, np.integer)", "np.issubdtype(stored, np.number)", FLOATS),
    "replicas of another class": ("evaluation/chains.py", "labels.repeat(num_replicas)", "labels.repeat_interleave(num_replicas)", f"{CHAINS}::test_replicas_of_a_chain_keep_its_class"),
    "a warm-up without effect": ("evaluation/chains.py", "kernel = module_of(sampler).build(sampler, bounds=model.bounds)", "kernel = model.kernel()", f"{CHAINS}::test_a_warm_up_adapts_the_step_size"),
    "replicas that are not used": ("evaluation/chains.py", "kernel = tempered(betas)", "tempered(betas)", f"{CHAINS}::test_tempered_chains_mix_between_modes_that_plain_chains_do_not_leave"),
    "compiled chains go uphill": ("energies/__init__.py", "return value, -gradient", "return value, gradient", SAMPLING),
    "one row of noise for several steps": ("chains/block.py", "for row in zip(*randomness, strict=True):", "for row in [next(zip(*randomness))] * len(randomness[0]):", BLOCKS),
    "a copy of old weights": ("chains/compiled.py", "tensor.copy_(operator.attrgetter(name)(self.energy))", "pass", SAMPLING),
    "steps beyond the last": ("chains/compiled.py", "for n in range(1, most + 1) if num_steps % n == 0", "for n in range(1, most + 1)", SAMPLING),
    "parts by the labels of the first": ("chains/compiled.py", "else labels.tensor_split(parts)", "else [labels.tensor_split(parts)[0]] * parts", SAMPLING),
    "parts with the noise of the first": ("chains/compiled.py", "numbers.tensor_split(parts, dim=1)", "numbers.tensor_split(parts, dim=1)[:1] * parts", SAMPLING),
    "powers of the image itself": ("energies/band_power.py", "(colours - smooth).square()", "colours.square()", BAND_POWER),
    "the finest octave again and again": ("energies/band_power.py", "colours = coarse", "colours = coarse.detach() * 0 + smooth[..., ::2, ::2]", BAND_POWER),
    "a tail that falls": ("energies/band_power.py", "energy + self.weight * torch.log1p(distance)", "energy - self.weight * torch.log1p(distance)", BAND_POWER),
    "the mean is not taken off": ("energies/band_power.py", "log_powers(x, self.floor) - self.mean", "log_powers(x, self.floor)", BAND_POWER),
    "moments of one worker": ("training/trainer.py", "sums = comm.gather(torch.stack([shard.sum(of) for shard in data.values()]), num_shards)", "sums = torch.stack([shard.sum(of) for shard in data.values()])", BAND_POWER),
    "a sum of B": ("chains/cpu_layers.py", "4 * d0 - 5 * d2 + d4", "4 * d0 - 5 * d2 - d4", FAST_LAYERS),
    "a sum of G": ("chains/cpu_layers.py", "g0 / 24 + g2 / 6", "g0 / 24 - g2 / 6", FAST_LAYERS),
    "a sum of A": ("chains/cpu_layers.py", "b + 8 * d + m5", "b + 8 * d", FAST_LAYERS),
    "the gradient's kernel is not turned": ("chains/cpu_layers.py", "weight.flip(2, 3).transpose(0, 1)", "weight.transpose(0, 1)", FAST_LAYERS),
    "fast layers of old weights": ("chains/cpu_layers.py", "getattr(layer, name).copy_(rows)", "pass", FAST_LAYERS),
    "sign of the bias": ("chains/cpu_layers.py", "- (-self.bias)", "- self.bias", FAST_LAYERS),
    "slope of a unit": ("energies/_layers.py", "unit * (1 - sigmoid)", "unit * (1 + sigmoid)", FAST_LAYERS),
    "only the first input": ("chains/cpu_layers.py", "sum(rest, first)", "first", FAST_LAYERS),
    "only the first input's gradient": ("chains/cpu_layers.py", "for column in weight.unbind(1)], dim", "for column in weight.unbind(1)[:1]], dim", FAST_LAYERS),
    "any height": ("chains/cpu_layers.py", "x.shape[2] % 4 or not", "not", FAST_LAYERS),
    "chains of old fast layers": ("chains/compiled.py", "cpu_layers.sync_weights(self.copy)", "pass", f"{SAMPLING}::test_compiled_chains_of_fast_layers_follow_the_weights"),
    "a gradient of another layout": ("training/optim.py", "laid_out_as(parameter, piece.view_as(parameter))", "piece.view_as(parameter)", ADAM),
    "moments of another layout": ("training/state.py", "optim.laid_out_as(parameter, value) if value.shape == parameter.shape else value", "value", ADAM),
    "pooling sums": ("energies/resnet.py", "F.avg_pool2d(F.pad(weight", "4 * F.avg_pool2d(F.pad(weight", SAMPLING),
    "gain is added": ("energies/resnet.py", "gain * self.second(", "gain + self.second(", SAMPLING),
    "cells overlap by one": ("energies/convnet.py", "(2 * b, 3 - 2 * b, 2 * a, 3 - 2 * a)", "(b, 3 - b, a, 3 - a)", SAMPLING),
    "the upper half is hidden": ("evaluation/completion.py", "x[..., x.shape[-2] // 2 :, :]", "x[..., : x.shape[-2] // 2, :]", CONDITIONAL),
    "completions of no class": ("evaluation/completion.py", "y if is_conditional(model.params) else None", "0 * y if is_conditional(model.params) else None", CONDITIONAL),
    "an image of the class itself": ("evaluation/cross_class.py", "(k + 1 + (i //", "(k + (i //", CONDITIONAL),
    "hits of what it came from": ("evaluation/cross_class.py", '"hit_rate": hits(subject, look, requested)', '"hit_rate": hits(subject, look, y[origin])', CONDITIONAL),
    "threads stay as they were in training": ("api/training.py", "        torch.set_num_threads(before)", "        pass", API_TRAINING),
    "a model of another training is overwritten": ("api/training.py", '!= digest):', '!= digest and False):', API_TRAINING),
    "langevin at half the temperature": ("api/sampling.py", "(2 * config.step_size) ** 0.5", "config.step_size**0.5", API_SAMPLING),
    "an adapted step that is not used": ("api/sampling.py", "config, x = adapted(config, position=x, num_steps=num_warmup)", "_, x = adapted(config, position=x, num_steps=num_warmup)", API_SAMPLING),
    "draws in scaled coordinates": ("api/sampling.py", "draws *= scales", "pass", API_SAMPLING),
    "scales are variances": ("chains/adaptation.py", "(n + _SHRINK)).sqrt()", "(n + _SHRINK))", API_SAMPLING),
    "scales of parts without their means": ("chains/adaptation.py", " + (mean - self.mean) ** 2 * self.count * n / total", "", API_SAMPLING),
    "all chains in the first shard": ("chains/replay.py", "draw.kept // size == i", "draw.kept // size == 0", "tests/unit/test_replay.py"),
    "sign of the denoised score": ("objectives/score_matching.py", "(sigma * s + z)), value", "(sigma * s - z)), value", CHAIN_FREE),
    "levels without their weight": ("objectives/score_matching.py", "(sigma * s + z)), value", "(s + z / sigma)), value", CHAIN_FREE),
    "levels of another weight": ("objectives/score_matching.py", "_half_square(weight**0.5 *", "_half_square(weight *", CHAIN_FREE),
    "a network of levels without its scale": ("energies/__init__.py", "self.data_sd / sigma * self.network", "self.data_sd * self.network", CHAIN_FREE),
    "inputs of levels without their scale": ("energies/__init__.py", "u = x / v.sqrt()", "u = x / v", CHAIN_FREE),
    "an autoencoder without half": ("energies/autoencoder.py", "f * (f / 2 - a * x)", "f * (f - a * x)", CHAIN_FREE),
    "noise of one size at all levels": ("objectives/score_matching.py", "score(energy, x + sigma * z)", "score(energy, x + z)", CHAIN_FREE),
    "half the trace": ("objectives/score_matching.py", "return trace + _half_square(s)", "return trace / 2 + _half_square(s)", CHAIN_FREE),
    "slices with the wrong sign": ("objectives/score_matching.py", "curvature + (v * along)", "curvature - (v * along)", CHAIN_FREE),
    "a square, not half of it": ("objectives/score_matching.py", ".sum(dim=1).mean() / 2", ".sum(dim=1).mean()", CHAIN_FREE),
    "negatives attract": ("objectives/energy_discrepancy.py", "energy_pos - energy_neg]", "energy_neg - energy_pos]", CHAIN_FREE),
    "negatives disturbed once": ("objectives/energy_discrepancy.py", "(centre + config.sigma * xi)", "(x + config.sigma * xi)", CHAIN_FREE),
    "a sum over negatives": ("objectives/energy_discrepancy.py", ".mean() - math.log(m)", ".mean()", CHAIN_FREE),
    "a histogram without its share": ("generators/histogram.py", "((1 - a) * density", "(density", CHAIN_FREE),
    "tents the wrong way": ("generators/histogram.py", "torch.where(step == 1, rest, 1 - rest)", "torch.where(step == 0, rest, 1 - rest)", CHAIN_FREE),
    "draws without smoothing": ("generators/histogram.py", "(cell + first + second - 0.5)", "(cell + first)", CHAIN_FREE),
    "transport the wrong way": ("objectives/energy_matching.py", "(config.epsilon * gradient + x1 - x0)", "(config.epsilon * gradient + x0 - x1)", CHAIN_FREE),
    "transport at temperature 1": ("objectives/energy_matching.py", "(config.epsilon * gradient + x1 - x0)", "(gradient + x1 - x0)", CHAIN_FREE),
    "the dearest coupling": ("objectives/energy_matching.py", "linear_sum_assignment(cost.cpu().numpy())", "linear_sum_assignment(-cost.cpu().numpy())", CHAIN_FREE),
    "noise too early": ("objectives/energy_matching.py", "rise = max(0.0, ((i + 1) * h - config.tau)", "rise = max(0.0, ((i + 1) * h)", CHAIN_FREE),
    "levels without shares": ("objectives/level_classification.py", "dim=1) + log_shares", "dim=1)", CHAIN_FREE),
    "levels without log Z": ("objectives/level_classification.py", "[-energy - c, log_q", "[-energy - 0 * c, log_q", CHAIN_FREE),
    "levels of one noise": ("objectives/level_classification.py", "(batch.x + sigma * z)", "(batch.x + z)", CHAIN_FREE),
    "the worst weights are selected": ("training/selection.py", "if self.last < self.loss:", "if self.last > self.loss or not self.best:", CHAIN_FREE),
    "selected weights are not exported": ("training/state.py", "        return best\n", "        pass\n", CHAIN_FREE),
    "conditionals of twice the width": ("chains/ladder.py", ".flatten(1).sum(dim=1) / 2", ".flatten(1).sum(dim=1) / 8", LADDER),
    "too little noise": ("chains/ladder.py", "up = (sigmas[-1] ** 2 - sigmas[0] ** 2) ** 0.5", "up = sigmas[-2]", LADDER),
    "a focus of another width": ("objectives/score_matching.py", ".log() / width", ".log()", f"{CHAIN_FREE}::test_a_focus_gives_levels_their_shares_of_the_batch"),
    "ancestral steps with too much noise": ("samplers/ancestral.py", "d * lower / upper * noise()", "d * noise()", LADDER_ANCESTRAL),
    "ancestral steps of half the length": ("samplers/ancestral.py", "x = x + d**2 * s", "x = x + d**2 / 2 * s", LADDER_ANCESTRAL),
    "ancestral steps at the level below": ("samplers/ancestral.py", "torch.full((len(x),), k,", "torch.full((len(x),), max(k - 1, 0),", LADDER_ANCESTRAL),
    "corrections without noise": ("samplers/ancestral.py", "(config.correction * (2 - config.correction)) ** 0.5", "0", LADDER_ANCESTRAL),
    "levels in the wrong order": ("chains/ladder.py", "for k in reversed(range(len(widths))):", "for k in range(len(widths)):", LADDER),
    "recovered samples attract": ("objectives/recovery_likelihood.py", "loss = energy_pos.mean() - energy_neg.mean()", "loss = energy_neg.mean() - energy_pos.mean()", LADDER),
    "noise of the level above": ("objectives/recovery_likelihood.py", "above = positive + s * z_above", "above = positive + sigma * z_above", LADDER),
    "recovered in other coordinates": ("objectives/recovery_likelihood.py", "torch.cat([positive, s * u])", "torch.cat([positive, u])", LADDER),
    "no way back of a change": ("samplers/gibbs_with_gradients.py", "+ logits(new).log_softmax(dim=1).gather(1, back).squeeze(1)", "+ log_q.gather(1, j).squeeze(1)", DISCRETE),
    "the wrong way back": ("samplers/gibbs_with_gradients.py", "back = (x * of_variable)", "back = (chosen * of_variable)", DISCRETE),
    "Gaussians of equal weight": ("generators/mixture.py", "self.weights.log() - terms / 2", "-terms / 2", MIXTURE),
    "noise along the axes only": ("generators/mixture.py", "_terms(other, self.others + noise, r - a)", "_terms(other, self.others + 0 * noise, r - a)", MIXTURE),
    "volume of one dimension": ("generators/mixture.py", "count * (2 * math.pi * variance).log()", "(2 * math.pi * variance).log()", MIXTURE),
    "draws without the other variances": ("generators/mixture.py", "self.means[j] + other * inside", "self.means[j] + inside", MIXTURE),
    "covariances around the origin": ("generators/mixture.py", "second - counts * products", "second", MIXTURE),
    "a base of less energy": ("energies/__init__.py", "- weight * self.base", "+ weight * self.base", MIXTURE),
    "a base at all levels": ("energies/__init__.py", "weight = 1 / (1 + (self.base_from / sigma) ** 4)", "weight = 1", MIXTURE),
    "no way back of a jump": ("samplers/dmala.py", "log_q(logits(new, step_size), undone)", "log_q(there, chosen)", DISCRETE),
    "jumps at temperature 1": ("samplers/dmala.py", "(state.energy - new.energy) / temperature", "(state.energy - new.energy) * 0.7", DISCRETE),
    "every step is a draw": ("chains/block.py", "[-(start + 1) % thin :: thin]", "[::thin]", BLOCKS),
    "a module stays in evaluation mode": ("api/sampling.py", "part.training = is_training", "pass", API_SAMPLING),
    "the best coordinate is reported": ("api/sampling.py", "np.max(diagnostics.rhat(moving))", "np.min(diagnostics.rhat(moving))", API_SAMPLING),
    "a start that is not finite": ("api/sampling.py", "state.is_finite if", "x.isfinite() if", API_SAMPLING),
    "scores in other units": ("api/model.py", "scores / torch.from_numpy(standardisation.sd)", "scores", API_MODEL),
    "gradients of other energies": ("api/model.py", "(energies - mean[labels]) / sd[labels]", "energies", API_MODEL),
    "values out of bounds": ("api/model.py", "if self.bounds:", "if False:", API_MODEL),
    "autocovariances of a circle": ("chains/diagnostics.py", "2 * n, real=True", "n, real=True", DIAGNOSTICS),
}  # fmt: skip


def test_the_table_fits_the_code():
    for name, (file, right, _, test) in MUTANTS.items():
        assert (ROOT / "ebm_dist" / file).read_text().count(right) == 1, (
            f"{name}: {file} does not have {right!r} once; fix this table"
        )
        assert (ROOT / test.partition("::")[0]).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_does_not_survive(name, tmp_path):
    file, right, wrong, test = MUTANTS[name]
    for folder in ("ebm_dist", "pipelines", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = (tmp_path / "ebm_dist" / file).read_text()
    (tmp_path / "ebm_dist" / file).write_text(source.replace(right, wrong))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *(["-m", "not drill"] if "::" in test else []),  # a test that is named may be slow
        test,
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, f"{name} survived {test}:\n{done.stdout[-2000:]}"
