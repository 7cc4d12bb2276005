import { readdirSync, readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Records bubblewrap and the first process of its namespace: either can outlive the other, and while one lives no second
 * incarnation may start.
 */
export async function recordProcesses(file: string, pid: number, namespaced: boolean): Promise<void> {
  const line = (one: number): string => `${one} ${startTimeOf(one)}\n`;
  await writeFile(file, line(pid));
  if (!namespaced) return;
  for (const deadline = Date.now() + 5_000; Date.now() < deadline && startTimeOf(pid) !== ''; await sleep(5)) {
    const inner = childrenOf(pid).find(isFirstOfNamespace);
    if (inner === undefined) continue;
    await writeFile(file, line(pid) + line(inner));
    return;
  }
}

/** The recorded processes that still run. */
export async function recordedAlive(file: string): Promise<number[]> {
  const recorded = await readFile(file, 'utf8').catch(() => '');
  return recorded.split('\n').flatMap((line) => {
    const [pid, startTime] = line.split(' ');
    return startTime !== undefined && startTime !== '' && startTimeOf(Number(pid)) === startTime ? [Number(pid)] : [];
  });
}

function startTimeOf(pid: number): string {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? '' : (fields[19] ?? '');
  } catch {
    return '';
  }
}

function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8')
        .split(' ')
        .filter((child) => child !== '')
        .map(Number),
    );
  } catch {
    // Gone meanwhile.
    return [];
  }
}

/** True for process 1 of a PID namespace below ours; before bubblewrap itself runs there are short-lived helpers. */
function isFirstOfNamespace(pid: number): boolean {
  try {
    return /^NSpid:.*\s1$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** Processes below one, parents before children. */
export function descendants(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendants(child)]);
}

export function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already.
  }
}
