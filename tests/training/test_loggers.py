"""A logger that fails does not end the run."""

from lightning.pytorch.loggers import Logger

from diva.training.loggers import harmless


class Unreliable(Logger):
    """Fails from the second call on."""

    def __init__(self):
        super().__init__()
        self.logged = []

    name = version = ""

    def log_hyperparams(self, params):
        self.logged.append(params)

    def log_metrics(self, metrics, step=None):
        self.logged.append(step)
        if len(self.logged) > 2:
            raise BrokenPipeError("the server\nis gone [/]")


def test_its_first_failure_is_said_and_it_is_not_called_again(capsys):
    logger = harmless(Unreliable())
    logger.log_hyperparams({"seed": 1})
    for step in range(4):
        logger.log_metrics({"loss": 1.0}, step)
    logger.finalize("success")
    assert logger.logged == [{"seed": 1}, 0, 1]
    said = " ".join(capsys.readouterr().err.split())
    assert "Unreliable failed and is not used from now on (BrokenPipeError: the server is gone [/])" in said
    assert said.count("failed") == 1
