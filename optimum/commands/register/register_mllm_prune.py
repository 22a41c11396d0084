"""Plugs the commands into optimum-cli. Runs on every optimum-cli call: imports nothing heavy."""

from optimum_mllm_prune.commands.prune import MLLMPruneCommand


REGISTER_COMMANDS = [MLLMPruneCommand]
