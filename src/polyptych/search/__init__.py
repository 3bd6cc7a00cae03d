"""Search for what tasks share: turn any backbone into a space of policies, and extract compact networks from it.

>>> from polyptych.search import compile, extract
>>> supermodel = compile(backbone, ("semseg", "depth"), space="tree")
>>> policy = supermodel.space.draw(Random(0))
>>> outputs = supermodel(image, policy)          # {task: what the backbone returns}
>>> network = extract(supermodel, policy)        # the same outputs, without the search

Public, and kept stable:

- :func:`compile(backbone, tasks, space=, granularity=, norms=, skip=, pinned=, size=, whole=, any_size=)
  <polyptych.search.supermodel.model.compile>` gives a :class:`~polyptych.search.supermodel.model.Supermodel`.
- ``Supermodel``: ``forward(image, policy)``, ``plan(policy)``, ``materialize(policies)``, ``renew()``, ``capture``,
  ``units``, ``space``, ``banks``, ``backbone``, ``tasks``.
- :class:`~polyptych.search.space.spaces.Space`: ``draw(random)``, ``mutate(policy, random)``, ``choices(unit)``,
  ``validate(policy)``, ``baselines()``, ``all_shared()``, ``all_own()``, ``bottom_shared(n)``, ``policy(rows)``,
  ``units``, ``tasks``.
- :class:`~polyptych.search.space.policy.Policy`: ``choices``, ``choice(unit, task)``, ``with_choices``, ``canonical``,
  ``read``, ``write``, ``encode``, ``decode``.
- :class:`~polyptych.search.space.units.Unit`: ``name``, ``targets``, ``norms``, ``before``, ``depth``, ``parameters``,
  ``skip``.
- :class:`~polyptych.search.supermodel.execution_plan.ExecutionPlan`: ``steps`` (each with ``node``, ``bank``,
  ``inputs``, ``tasks``, ``skip``), ``outputs``, ``trunk``, ``cut``. The cost of a policy is a sum over its steps;
  ``node.meta`` has the shapes.
- :func:`extract(supermodel, policy) <polyptych.search.supermodel.extraction.extract>` gives a
  :class:`~polyptych.search.supermodel.extraction.Compact` (its ``body`` has the weights); the encoder ``searched``
  builds one from a policy file.
"""

from polyptych.search.space.policy import OWN, SHARED, SKIP, Compilation, Policy
from polyptych.search.supermodel.extraction import Compact, extract
from polyptych.search.supermodel.model import Supermodel, compile

__all__ = ["OWN", "SHARED", "SKIP", "Compact", "Compilation", "Policy", "Supermodel", "compile", "extract"]
