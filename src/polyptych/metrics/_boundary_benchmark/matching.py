"""One-to-one matching on a bipartite graph: the native part of the correspondence.

The pixels of one side are *rows*, those of the other *columns*. A maximum matching alone (augmenting paths) decides how
many pairs there are; which of the maximum matchings has the least total distance is a linear assignment problem, solved
by shortest augmenting paths. The second is much slower, so it runs only on the part of the graph where it can change
the result.
"""

from __future__ import annotations

import heapq
from typing import no_type_check

import numpy as np

from polyptych.native import native


@native
@no_type_check
def candidates(pixels, others, height, width, offsets, costs):
    """For each pixel, the others within the tolerance, nearest first: start (n+1), indices into ``others`` (e), costs
    (e)."""
    # A map from position to pixel makes finding neighbors a loop over the offsets, independent of the number of others.
    index = np.full((height, width), -1, np.int32)
    for k in range(others.size):
        index[others[k] // width, others[k] % width] = k
    start = np.zeros(pixels.size + 1, np.int64)
    for fill in range(2):  # count, then write
        if fill:
            edges, edge_costs = np.empty(start[-1], np.int32), np.empty(start[-1], np.int32)
        else:
            edges, edge_costs = np.empty(0, np.int32), np.empty(0, np.int32)
        count = 0
        for k in range(pixels.size):
            y, x = pixels[k] // width, pixels[k] % width
            for o in range(len(offsets)):
                yy, xx = y + offsets[o, 0], x + offsets[o, 1]
                if 0 <= yy < height and 0 <= xx < width and index[yy, xx] >= 0:
                    if fill:
                        edges[count], edge_costs[count] = index[yy, xx], costs[o]
                    count += 1
            start[k + 1] = count
    return start, edges, edge_costs


@native
@no_type_check
def match_most(start, edges, active, row_mates, column_mates, excess_rows, excess_columns):
    """Complete a matching of the active rows to one of maximum cardinality, and find where rows are in excess.

    Args:
        start, edges: columns of each row, as :func:`candidates` gives them.
        active (n) bool: rows that take part.
        row_mates (n), column_mates (m) int32: a matching to begin with, -1 for none; completed in place. The initial
            matching only affects which of the maximum matchings is found.
        excess_rows (n), excess_columns (m) bool: set where alternating paths from unmatched rows reach. Every maximum
            matching matches all other active rows with other columns, and all of these columns with these rows
            (Dulmage and Mendelsohn 1958).

    Returns:
        The number of pairs.
    """
    parent = np.empty(column_mates.size, np.int32)
    seen = np.zeros(column_mates.size, np.int32)
    queue = np.empty(row_mates.size, np.int32)
    excess_rows[:] = False
    excess_columns[:] = False
    # A row that is no longer active frees its column; the rest is still a matching and needs few augmenting paths.
    for i in range(row_mates.size):
        if not active[i] and row_mates[i] >= 0:
            column_mates[row_mates[i]] = -1
            row_mates[i] = -1
    for i in range(row_mates.size):
        if active[i] and row_mates[i] < 0:
            for e in range(start[i], start[i + 1]):
                if column_mates[edges[e]] < 0:
                    row_mates[i], column_mates[edges[e]] = edges[e], i
                    break
    # Breadth-first search for an augmenting path from each unmatched row (Berge 1957: without one the matching is
    # maximum).
    for root in range(row_mates.size):
        if not active[root] or row_mates[root] >= 0:
            continue
        queue[0] = root
        head, tail, end = 0, 1, -1
        while head < tail and end < 0:
            i = queue[head]
            head += 1
            for e in range(start[i], start[i + 1]):
                j = edges[e]
                if excess_columns[j] or seen[j] == root + 1:  # a search that failed leads nowhere from here
                    continue
                seen[j], parent[j] = root + 1, i
                if column_mates[j] < 0:
                    end = j
                    break
                queue[tail] = column_mates[j]
                tail += 1
        while end >= 0:  # flip the path back to the root
            i = parent[end]
            column_mates[end], row_mates[i], end = i, end, row_mates[i]
        # A failed search has visited everything that competes with its root: more rows than columns. No later path can
        # end there, so marking it bounds the total time of all failed searches by that of one.
        if row_mates[root] < 0:
            for k in range(tail):
                excess_rows[queue[k]] = True
                if row_mates[queue[k]] >= 0:
                    excess_columns[row_mates[queue[k]]] = True
    count = 0
    for i in range(row_mates.size):
        count += row_mates[i] >= 0
    return count


@native
@no_type_check
def match_nearest(start, edges, costs, sources, targets, source_mates, target_mates):
    """Match every source with a target at least total cost: shortest augmenting paths with potentials.

    Args:
        start, edges, costs: targets of each source by increasing cost, as :func:`candidates` gives them.
        sources (n), targets (m) bool: those that take part; it must be possible to match all of these sources.
        source_mates (n), target_mates (m) int32: written; -1 for none.

    Returns:
        The total cost. On ties, the result depends only on the graph, so it is deterministic.
    """
    source_mates[:] = -1
    target_mates[:] = -1
    # Dual prices: costs[e] - worth[i] - price[j] >= 0 for every edge, and = 0 for matched ones. As long as this holds,
    # augmenting along a shortest path in these reduced costs keeps the total cost minimal, and without negative edges
    # Dijkstra's algorithm finds it.
    price = np.zeros(target_mates.size, np.int64)  # of a target: at most 0, and 0 while it is free
    worth = np.zeros(source_mates.size, np.int64)
    for i in range(source_mates.size):
        if sources[i]:  # take the nearest target if it is free: most sources need no search
            first = start[i]
            while not targets[edges[first]]:
                first += 1
            worth[i] = costs[first]
            for e in range(first, start[i + 1]):
                if costs[e] > worth[i]:
                    break
                if targets[edges[e]] and target_mates[edges[e]] < 0:
                    source_mates[i], target_mates[edges[e]] = edges[e], i
                    break
    far = np.int64(1) << 40
    distance = np.full(target_mates.size, far, np.int64)
    parent = np.empty(target_mates.size, np.int32)
    done = np.zeros(target_mates.size, np.bool_)
    touched = np.empty(target_mates.size, np.int32)
    for root in range(source_mates.size):
        if not sources[root] or source_mates[root] >= 0:
            continue
        heap = [np.int64(0) for _ in range(0)]
        count, end, best, base, i = 0, np.int32(-1), far, np.int64(0), np.int32(root)
        while True:
            for e in range(start[i], start[i + 1]):
                length = base + costs[e] - worth[i]
                if length >= best:  # prices only add to it, and later ones are longer
                    break
                j = edges[e]
                length -= price[j]
                if not targets[j] or done[j] or length >= best or length >= distance[j]:
                    continue
                if distance[j] == far:
                    touched[count] = j
                    count += 1
                distance[j], parent[j] = length, i
                if target_mates[j] < 0:
                    best, end = length, j
                else:
                    heapq.heappush(heap, length << 32 | np.int64(j))  # one integer: ties pop in fixed order
            i = np.int32(-1)
            while len(heap) > 0 and (heap[0] >> 32) < best:
                key = heapq.heappop(heap)
                j = np.int32(key & 0xFFFFFFFF)
                if not done[j]:
                    done[j], base, i = True, key >> 32, target_mates[j]
                    break
            if i < 0:
                break
        # The prices of every target settled nearer than the end move by the difference; otherwise edges of the new path
        # would have a positive reduced cost, and later searches would be wrong.
        worth[root] += best
        for k in range(count):
            j = touched[k]
            if done[j]:
                price[j] += distance[j] - best
                worth[target_mates[j]] += best - distance[j]
                done[j] = False
            distance[j] = far
        while end >= 0:
            i = parent[end]
            target_mates[end], source_mates[i], end = i, end, source_mates[i]
    total = np.int64(0)
    for i in range(source_mates.size):
        if source_mates[i] >= 0:
            total += worth[i] + price[source_mates[i]]
    return total


@native
@no_type_check
def match_levels(row_start, row_edges, row_costs, column_start, column_edges, column_costs, start, members, several,
                 matched):
    """Match the rows of every level with the columns of one truth; the numbers of pairs (t) int64.

    Args:
        row_start, ..., column_costs: the candidates of either side, for the rows of all levels.
        start (t+1), members: the rows of level k are ``members[start[k]:start[k + 1]]``.
        several: whether it matters which rows are matched.
        matched: bool, for each of ``members``; set where matched, if ``several``.
    """
    n, m = row_start.size - 1, column_start.size - 1
    active = np.zeros(n, np.bool_)
    row_mates, near_rows = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    column_mates, near_columns = np.full(m, -1, np.int32), np.full(m, -1, np.int32)
    excess_rows, excess_columns = np.zeros(n, np.bool_), np.zeros(m, np.bool_)
    found = np.zeros(start.size - 1, np.int64)
    for level in range(start.size - 2, -1, -1):  # levels grow, so the last matching is a good start
        active[:] = False
        for k in range(start[level], start[level + 1]):
            active[members[k]] = True
        found[level] = match_most(row_start, row_edges, active, row_mates, column_mates, excess_rows, excess_columns)
        if several:
            # Distance decides which rows are matched only where more rows than columns compete.
            match_nearest(column_start, column_edges, column_costs, excess_columns, excess_rows, near_columns,
                          near_rows)
            for k in range(start[level], start[level + 1]):
                i = members[k]
                matched[k] |= near_rows[i] >= 0 if excess_rows[i] else row_mates[i] >= 0
    return found
