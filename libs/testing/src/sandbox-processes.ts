import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestPlatform } from './platform.ts';

/** A sandbox on this machine as the kernel shows it, whoever runs it: bubblewrap, or a node of the test bed. */
export interface SeenSandbox {
  /** Its workspace, as this machine sees it. */
  readonly workspace: string;
  /** Host pids of everything that has the workspace mounted. */
  readonly pids: readonly number[];
  /** Host pid of the first process of its PID namespace: with it all of it dies. */
  readonly init: number;
}

/** The sandboxes of a platform that run on this machine now. */
export function sandboxesOf(platform: TestPlatform): SeenSandbox[] {
  return sandboxesHere().filter(
    ({ workspace, init }) => workspace.startsWith(platform.stateDir) || dials(init, platform.env['HUB_PORT'] ?? ''),
  );
}

/** The sandbox of a platform whose workspace holds a file. */
export function sandboxWith(platform: TestPlatform, file: string): SeenSandbox | undefined {
  return sandboxesOf(platform).find(({ workspace }) => existsSync(join(workspace, file)));
}

function sandboxesHere(): SeenSandbox[] {
  const found = new Map<string, { pids: number[]; init: number | null }>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const workspace = workspaceOf(name);
      if (workspace === null) continue;
      const seen = found.get(workspace) ?? { pids: [], init: null };
      seen.pids.push(Number(name));
      if (isFirst(name)) seen.init = Number(name);
      found.set(workspace, seen);
    } catch {
      // It ended while it was looked at.
    }
  }
  return [...found].flatMap(([workspace, { pids, init }]) => (init === null ? [] : [{ workspace, pids, init }]));
}

/** Whether a pod's first process was told of the hub at this port. */
function dials(pid: number, port: string): boolean {
  try {
    return new RegExp(`HOLDFAST_HUB_URL=wss://[^\\0]*:${port}\\0`).test(readFileSync(`/proc/${pid}/environ`, 'latin1'));
  } catch {
    return false;
  }
}

/** Where `/workspace` in the process' mounts comes from. */
function workspaceOf(pid: string): string | null {
  const mount = readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .find((fields) => fields[4] === '/workspace');
  return mount?.[3] ?? null;
}

function isFirst(pid: string): boolean {
  const ids = /^NSpid:\s+(.+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]?.split(/\s+/) ?? [];
  return ids.length > 1 && ids.at(-1) === '1';
}
