"""The Python SDK's own environment worker, as an operator runs it. Settings come from the environment."""

import asyncio
import os

from anthropic import AsyncAnthropic


async def main() -> None:
    client = AsyncAnthropic(api_key="unused", base_url=os.environ["API_URL"])
    await client.beta.environments.work.worker(
        environment_id=os.environ["ENVIRONMENT_ID"],
        environment_key=os.environ["ENVIRONMENT_KEY"],
        worker_id=os.environ["WORKER_ID"],
        workdir=os.getcwd(),
        max_idle=float(os.environ["MAX_IDLE_MS"]) / 1000,
    ).run()


asyncio.run(main())
