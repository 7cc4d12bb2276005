import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Set by jest's globalSetup: a folder of this test run, shared by its workers. */
const RUN_DIR = 'HOLDFAST_TEST_RUN_DIR';

export function testRunDir(): string {
  const dir = process.env[RUN_DIR];
  if (dir === undefined) throw new Error(`${RUN_DIR} is not set; jest.config.js sets it through globalSetup`);
  return dir;
}

/** What a worker needs to know of a server, and the process that globalTeardown ends. */
export interface SharedServer {
  readonly pid: number;
}

/**
 * One server per test run, started by the first worker that asks. Others wait for it. `start` gets a folder of its own.
 */
export async function sharedServer<T extends SharedServer>(
  name: string,
  start: (dir: string) => Promise<T>,
): Promise<T> {
  const dir = join(testRunDir(), name);
  const facts = join(dir, 'facts.json');
  try {
    mkdirSync(dir);
  } catch {
    for (const deadline = Date.now() + 90_000; Date.now() < deadline; ) {
      const started = read<T | { failed: string }>(facts);
      if (started !== undefined && 'failed' in started) throw new Error(`${name} did not start: ${started.failed}`);
      if (started !== undefined) return started;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error(`${name} did not start within 90 s`);
  }
  try {
    const server = await start(dir);
    publish(facts, server);
    return server;
  } catch (error) {
    publish(facts, { failed: String(error) });
    throw error;
  }
}

function publish(file: string, value: unknown): void {
  writeFileSync(`${file}.new`, JSON.stringify(value));
  renameSync(`${file}.new`, file);
}

function read<T>(file: string): T | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as T;
  } catch {
    return undefined;
  }
}
