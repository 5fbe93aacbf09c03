import asyncio

from dspool import Pool


async def main() -> None:
    async with Pool.start() as pool:
        result = await pool.execute(
            "qa", context="The Seine flows through Paris.", question="Which river flows through Paris?"
        )
        print(result.answer, "(offline)" if result.offline else "")

        session = pool.session("alice")
        await session.create_program("count", {"signature": "text -> words: int"})
        print((await session.execute("count", text="one two three")).outputs)
        await session.set_variable("tone", "friendly")
        print(await session.variables())


asyncio.run(main())
