"""LangGraph's loop: `langgraph_loop.py MODE STEPS FOLDER`; MODE is sync, sync-normal (SQLite's synchronous=NORMAL) or exit."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from work import NOTE, report, voted


class State(TypedDict):
    at: int
    note: str


def main(mode: str, steps: int, folder: Path) -> None:
    connection = sqlite3.connect(folder / "langgraph.db", check_same_thread=False)
    saver = SqliteSaver(connection)
    saver.setup()
    if mode == "sync-normal":
        connection.execute("PRAGMA synchronous=NORMAL")
    limit = 20
    graph = StateGraph(State)
    graph.add_node("step", lambda state: {"at": voted(state["at"])})
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: END if state["at"] >= limit else "step")
    compiled = graph.compile(checkpointer=saver)

    def loop(name: str = "bench") -> int:
        return int(
            compiled.invoke(
                {"at": 0, "note": NOTE},
                {"configurable": {"thread_id": name}, "recursion_limit": limit + 10},
                durability="exit" if mode == "exit" else "sync",
            )["at"]
        )

    loop("warm")
    limit = steps
    report(steps, loop)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
