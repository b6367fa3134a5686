"""Where prompts come from: tasks, files, chat templates and the order of the run."""
