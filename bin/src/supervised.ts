import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { endProcess, RunFolder } from './processes.ts';
import type { Settings } from './settings.ts';
import type { SupervisorStatus } from './supervisor.ts';

const DRAIN_MS = 60_000;

/** Stops the supervisor and whatever it kept, also when the supervisor itself is gone. Returns how many it stopped. */
export async function down(settings: Settings): Promise<number> {
  const run = new RunFolder(settings.stateDir);
  const supervisor = run.find('supervisor');
  let stopped = 0;
  if (supervisor !== null) {
    await endProcess(supervisor.pid, 'SIGTERM', DRAIN_MS);
    stopped += 1;
  }
  run.recordStrays();
  const order = (name: string): number =>
    ['dashboard', 'gateway-api', 'session', 'sandbox', 'demo-gateway', 'nats', 'postgres'].findIndex((base) =>
      name.startsWith(base),
    );
  for (const name of run.names().sort((a, b) => order(a) - order(b))) {
    const left = run.find(name);
    if (left !== null) {
      await endProcess(left.pid, name === 'postgres' ? 'SIGINT' : 'SIGTERM', 20_000);
      stopped += 1;
    }
    run.forget(name);
  }
  return stopped;
}

export function readStatus(run: RunFolder): SupervisorStatus | null {
  try {
    return JSON.parse(readFileSync(join(run.dir, 'status.json'), 'utf8')) as SupervisorStatus;
  } catch {
    return null;
  }
}

export async function isReady(url: string): Promise<boolean> {
  try {
    return (await fetch(url, { signal: AbortSignal.timeout(2_000) })).ok;
  } catch {
    return false;
  }
}

/** Starts a supervisor of its own session and leaves it; `serversOnly` = Postgres and NATS without any service. */
export function startSupervisor(run: RunFolder, buildId: string, serversOnly = false): ChildProcess {
  rmSync(join(run.dir, 'status.json'), { force: true });
  const log = openSync(run.logFile('supervisor'), 'a', 0o600);
  const child = spawn(process.execPath, [fileURLToPath(new URL('./supervisor.ts', import.meta.url))], {
    detached: true,
    stdio: ['ignore', log, log],
    env: { ...process.env, HOLDFAST_BUILD_ID: buildId, ...(serversOnly ? { HOLDFAST_SERVERS_ONLY: '1' } : {}) },
  });
  closeSync(log);
  child.unref();
  return child;
}

/**
 * Waits until the supervisor says ready and everything answers. `started` is the supervisor that was just started, if one
 * was. @throws Error with what failed
 */
export async function untilReady(
  run: RunFolder,
  say: (line: string) => void,
  started: ChildProcess | null,
): Promise<void> {
  for (let phase = ''; ; await sleep(100)) {
    // Looked for before its status is read: its last word counts.
    const ended = started === null || started.exitCode !== null || started.signalCode !== null;
    const alive = run.find('supervisor') !== null || !ended;
    const status = readStatus(run);
    if (status !== null && status.phase !== phase) {
      phase = status.phase;
      if (!status.ready && status.failed === null) say(phase);
    }
    if (status?.failed != null) throw new Error(status.failed);
    const answers = async ([name, url]: [string, string]): Promise<boolean> =>
      run.find(name) !== null && (await isReady(url));
    if (status?.ready === true && (await Promise.all(Object.entries(status.health).map(answers))).every(Boolean))
      return;
    if (!alive) throw new Error(`the supervisor ended; see ${run.logFile('supervisor')}`);
  }
}
