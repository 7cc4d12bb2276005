import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const alive = (pid) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

/** Ends the servers that specs started, and removes their folders. */
export default async function globalTeardown() {
  const runDir = process.env.HOLDFAST_TEST_RUN_DIR;
  const pids = [];
  for (const name of readdirSync(runDir)) {
    try {
      const { pid } = JSON.parse(readFileSync(join(runDir, name, 'facts.json'), 'utf8'));
      if (Number.isInteger(pid) && pid > 1) pids.push(pid);
    } catch {
      // Not a server's folder, or one that never started.
    }
  }
  for (const pid of pids.filter(alive)) process.kill(pid, 'SIGINT');
  for (let i = 0; i < 100 && pids.some(alive); i++) await new Promise((resolve) => setTimeout(resolve, 50));
  for (const pid of pids.filter(alive)) process.kill(pid, 'SIGKILL');
  rmSync(runDir, { recursive: true, force: true });
}
