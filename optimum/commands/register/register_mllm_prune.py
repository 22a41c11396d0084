"""Plugs the commands into optimum-cli. Runs on every optimum-cli call: imports nothing heavy."""

from optimum_mllm_prune.commands.eval import MLLMEvalCommand
from optimum_mllm_prune.commands.prune import MLLMPruneCommand
from optimum_mllm_prune.commands.recover import MLLMRecoverCommand


REGISTER_COMMANDS = [MLLMPruneCommand, MLLMRecoverCommand, MLLMEvalCommand]
