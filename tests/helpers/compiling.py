"""How a program is compiled whose instructions, copies or memory a test reads: as users' are, with the loops that XLA
writes for a CPU by default. The rest of the suite does without them (tests/conftest.py)."""

AS_USERS = {"xla_cpu_use_fusion_emitters": True}
