import { closeSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Journal } from './journal.ts';
import { Runner, readToken, scratchOf, startEgressRelay } from './runner.ts';
import { Tools } from './tools.ts';

/** The first process of a sandbox. Settings come from its environment, the token over file descriptor 3. */
const linkDir = process.env['HOLDFAST_LINK_DIR'] ?? '/run/holdfast/link';
const stateDir = process.env['HOLDFAST_RUNNER_STATE'] ?? '/run/holdfast/state';
const workspace = process.env['HOLDFAST_WORKSPACE'] ?? '/workspace';
const home = process.env['HOME'] ?? '/home/agent';
const proxyPort = Number(process.env['HOLDFAST_PROXY_PORT'] ?? 3128);

process.umask(Number.parseInt(process.env['HOLDFAST_UMASK'] ?? '022', 8));
const token = readToken(3);
try {
  closeSync(3);
} catch {
  // It was not open.
}
const proxy = `http://127.0.0.1:${proxyPort}`;
const env: Record<string, string> = {
  PATH: process.env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin',
  HOME: home,
  LANG: 'C.UTF-8',
  TERM: 'dumb',
  HTTP_PROXY: proxy,
  HTTPS_PROXY: proxy,
  http_proxy: proxy,
  https_proxy: proxy,
  NO_PROXY: 'localhost,127.0.0.1',
  no_proxy: 'localhost,127.0.0.1',
};
mkdirSync(scratchOf(home), { recursive: true });
if (proxyPort > 0) startEgressRelay(join(linkDir, 'egress.sock'), proxyPort);
const runner = new Runner({
  hubSocket: join(linkDir, 'hub.sock'),
  token,
  journal: new Journal(join(stateDir, 'journal.jsonl')),
  tools: new Tools({ workspace, home, scratch: scratchOf(home) }),
  env,
  leave: (code) => process.exit(code),
});
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => runner.stop(0));
runner.start();
