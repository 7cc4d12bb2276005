import { readdirSync, readFileSync } from 'node:fs';

/** In the environment of everything that a call starts. */
export const CALL_MARK = 'HOLDFAST_CALL';
/** A fork bomb may start some while we look; after so many looks whatever is left is killed as it is. */
const MAX_LOOKS = 50;

interface Seen {
  readonly pid: number;
  readonly parent: number;
  readonly group: number;
  /** When it was started, in clock ticks since the machine's start. */
  readonly startedAt: number;
  /** Whether somebody has stopped it already. */
  readonly stopped: boolean;
}

/** A call's processes. */
export interface CallProcesses {
  /** What its processes say that they belong to. */
  readonly marks: readonly string[];
  /** The process that the call began with, leader of its group. */
  readonly leader: number;
  readonly startedAt: number;
}

/** When a process was started; 0 when it is gone already. */
export function startedAt(pid: number): number {
  return look(pid)?.startedAt ?? 0;
}

/**
 * Kills a call's whole tree: its process group, everything that carries its mark, and what descends from those. Where the
 * runner is `alone` with the agent's processes, also what was begun during the call and has shed its mark and its parents.
 */
export function killTree(call: CallProcesses, alone: boolean): void {
  killAll((one, originOf) => {
    if (one.group === call.leader) return true;
    const { mark, oldest } = originOf(one);
    if (mark !== undefined) return call.marks.includes(mark);
    return alone && oldest.parent === 1 && call.startedAt > 0 && oldest.startedAt >= call.startedAt;
  });
}

/** Kills everything in the PID namespace but its first process, the runner, and what carries one of these marks. */
export function killOthers(marks: ReadonlySet<string>): void {
  killAll((one, originOf) => {
    const { mark } = originOf(one);
    return mark === undefined || !marks.has(mark);
  });
}

/**
 * Stops everything in the PID namespace but its first process and the runner. What it returns lets that go on, and not what
 * stood still before. Others may start a few while we look: those that have not shown up after so many looks run on.
 */
export function stopOthers(): () => void {
  const stopped = new Set<number>();
  for (let looks = 0; looks < MAX_LOOKS; looks++) {
    const fresh = others().filter((one) => !one.stopped && !stopped.has(one.pid));
    if (fresh.length === 0) break;
    for (const { pid } of fresh) {
      signal(pid, 'SIGSTOP');
      stopped.add(pid);
    }
  }
  return () => {
    for (const pid of stopped) signal(pid, 'SIGCONT');
  };
}

/** What a process or else its nearest marked ancestor says it belongs to, and the oldest ancestor looked at. */
type OriginOf = (one: Seen) => { readonly mark: string | undefined; readonly oldest: Seen };

/** Stops them first, until no new one shows up: what is stopped starts nothing. */
function killAll(belongs: (one: Seen, originOf: OriginOf) => boolean): void {
  const stopped = new Set<number>();
  for (let looks = 0; looks < MAX_LOOKS; looks++) {
    const all = new Map(others().map((one) => [one.pid, one]));
    const originOf: OriginOf = (one) => {
      const mark = markOf(one.pid);
      const parent = all.get(one.parent);
      return mark !== undefined || parent === undefined ? { mark, oldest: one } : originOf(parent);
    };
    const fresh = [...all.values()].filter((one) => !stopped.has(one.pid) && belongs(one, originOf));
    if (fresh.length === 0) break;
    for (const { pid } of fresh) {
      signal(pid, 'SIGSTOP');
      stopped.add(pid);
    }
  }
  for (const pid of stopped) signal(pid, 'SIGKILL');
}

/** Every process that runs, but for the first one, the runner and what has ended. */
function others(): Seen[] {
  return readdirSync('/proc').flatMap((name) => {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === 1 || pid === process.pid) return [];
    const seen = look(pid);
    return seen === null ? [] : [seen];
  });
}

function look(pid: number): Seen | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields[0] === 'Z' || fields[0] === 'X') return null;
    return {
      pid,
      parent: Number(fields[1]),
      group: Number(fields[2]),
      startedAt: Number(fields[19]),
      stopped: fields[0] === 'T' || fields[0] === 't',
    };
  } catch {
    return null;
  }
}

/** What a process says that it belongs to; undefined where that cannot be read. */
function markOf(pid: number): string | undefined {
  try {
    const entry = readFileSync(`/proc/${pid}/environ`, 'latin1')
      .split('\0')
      .find((one) => one.startsWith(`${CALL_MARK}=`));
    return entry?.slice(CALL_MARK.length + 1);
  } catch {
    return undefined;
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // Gone already, or not ours.
  }
}
