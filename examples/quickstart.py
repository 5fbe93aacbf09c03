"""A pool for the length of a script: a pool program, then a session with a program of its own."""

import asyncio

from dspool import Pool


async def main() -> None:
    async with Pool.start() as pool:
        result = await pool.execute(
            "qa", context="The Seine flows through Paris.", question="Which river flows through Paris?"
        )
        print(result.answer, "(offline)" if result.offline else "")

        session = pool.session("alice")
        await session.create_program("count", "context, question -> answer: int")
        print(
            (
                await session.execute(
                    "count", context="The bridge has 12 arches.", question="How many arches?"
                )
            ).outputs
        )
        await session.set_variable("tone", "friendly")
        print(await session.variables())


asyncio.run(main())
