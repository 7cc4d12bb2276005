import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';

/** Linux counts processor time in hundredths of a second. */
const TICKS_PER_SECOND = 100;

interface Stat {
  readonly parent: number;
  readonly cpuSeconds: number;
}

function textOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // The process is gone.
    return null;
  }
}

function statOf(pid: number): Stat | null {
  const text = textOf(`/proc/${pid}/stat`);
  if (text === null) return null;
  // The second field is the command in parentheses, which may hold anything.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const ticks = [11, 12, 13, 14].reduce((sum, field) => sum + Number(fields[field]), 0);
  return { parent: Number(fields[1]), cpuSeconds: ticks / TICKS_PER_SECOND };
}

/** Processor time of each named process with everything below it, in seconds, ended children included. */
export function cpuSeconds<N extends string>(pids: Readonly<Record<N, number>>): Record<N, number> {
  const stats = new Map<number, Stat>();
  for (const entry of readdirSync('/proc')) {
    const stat = /^\d+$/.test(entry) ? statOf(Number(entry)) : null;
    if (stat !== null) stats.set(Number(entry), stat);
  }
  const roots = new Set<number>(Object.values<number>(pids));
  const sums = Object.fromEntries(Object.keys(pids).map((name) => [name, 0])) as Record<N, number>;
  for (const pid of stats.keys()) {
    let root = pid;
    while (!roots.has(root) && stats.has(root)) root = stats.get(root)?.parent ?? 0;
    for (const name of Object.keys(pids) as N[]) {
      if (pids[name] === root) sums[name] += stats.get(pid)?.cpuSeconds ?? 0;
    }
  }
  return sums;
}

/**
 * Starts to watch; the function it returns says how many seconds of processor time went to anything but the process trees
 * of `roots` since then. Asks for the roots at both ends; null when one of them was replaced, for its time is lost.
 */
export function foreignCpu(roots: () => Readonly<Record<string, number>>): () => number | null {
  const read = () => ({ machine: machineCpuSeconds(), pids: roots(), own: cpuSeconds(roots()) });
  const before = read();
  return () => {
    const after = read();
    if (Object.entries(before.pids).some(([name, pid]) => after.pids[name] !== pid)) return null;
    // A root that came meanwhile is counted from its beginning.
    const own = Object.entries(after.own).reduce((sum, [name, spent]) => sum + spent - (before.own[name] ?? 0), 0);
    return Math.max(0, after.machine - before.machine - own);
  };
}

function machineCpuSeconds(): number {
  const [user, nice, system, , , irq, softirq] = (textOf('/proc/stat')?.split('\n')[0] ?? '')
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return [user, nice, system, irq, softirq].reduce<number>((sum, ticks) => sum + (ticks ?? 0), 0) / TICKS_PER_SECOND;
}

/** Memory that a process holds, shared pages counted by share (PSS), in MiB. */
export function pssMib(pid: number): number {
  const kib = /^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1];
  return Number(kib) / 1_024;
}

/** @throws when the process is gone */
export function parentOf(pid: number): number {
  const stat = statOf(pid);
  if (stat === null) throw new Error(`process ${pid} is gone`);
  return stat.parent;
}

export const CORES = availableParallelism();
