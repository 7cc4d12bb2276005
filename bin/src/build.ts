import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ROOT } from './settings.ts';

const SOURCES = ['libs', 'services', 'harnesses', 'bin', 'package-lock.json', 'tsconfig.base.json', 'nx.json'];
const IGNORED = new Set(['node_modules', 'dist', '.next', '.holdfast']);

/** Identifies the sources by content, quickly: names, sizes and times first, contents only when those changed. */
export function sourcesId(): string {
  const hash = createHash('sha256');
  const visit = (path: string): void => {
    const stat = statSync(path);
    if (!stat.isDirectory()) {
      hash.update(`${path.slice(ROOT.length)} ${stat.size} ${Math.trunc(stat.mtimeMs)}\n`);
      return;
    }
    for (const entry of readdirSync(path).sort()) if (!IGNORED.has(entry)) visit(join(path, entry));
  };
  for (const source of SOURCES) visit(join(ROOT, source));
  return hash.digest('hex').slice(0, 16);
}

/** Builds every package unless the last build was of the same sources. */
export function build(log: (line: string) => void): string {
  const id = sourcesId();
  const stamp = join(ROOT, 'node_modules', '.cache', 'holdfast-build');
  if (
    existsSync(stamp) &&
    readFileSync(stamp, 'utf8') === id &&
    existsSync(join(ROOT, 'services/session/dist/main.js'))
  )
    return id;
  log('building (about a minute the first time)');
  const { status, stdout } = spawnSync('nx', ['run-many', '-t', 'build', '--outputStyle=static'], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
    maxBuffer: 1 << 26,
    env: { ...process.env, NX_DAEMON: 'false', NX_NO_CLOUD: 'true', NEXT_TELEMETRY_DISABLED: '1' },
  });
  if (status !== 0) process.stderr.write(stdout);
  if (status !== 0) throw new Error('the build failed; see above');
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, id);
  return id;
}
