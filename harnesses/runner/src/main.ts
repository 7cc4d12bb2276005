import { closeSync } from 'node:fs';
import { join } from 'node:path';
import { Journal } from './journal.ts';
import { Runner, readToken, startEgressRelay } from './runner.ts';
import { Tools } from './tools.ts';

/** The first program of a sandbox. Settings come from its environment; it is handed the token and its journal open. */
const TOKEN_FILE = 3;
const JOURNAL_FILE = 4;
const linkDir = process.env['HOLDFAST_LINK_DIR'] ?? '/run/holdfast/link';
const workspace = process.env['HOLDFAST_WORKSPACE'] ?? '/workspace';
const home = process.env['HOME'] ?? '/home/agent';
const proxyPort = Number(process.env['HOLDFAST_PROXY_PORT'] ?? 3128);
const alone = process.env['HOLDFAST_ALONE'] === '1';

process.umask(Number.parseInt(process.env['HOLDFAST_UMASK'] ?? '022', 8));
const token = readToken(TOKEN_FILE);
closeSync(TOKEN_FILE);
const proxy = `http://127.0.0.1:${proxyPort}`;
const network: Record<string, string> =
  proxyPort === 0
    ? {}
    : {
        HTTP_PROXY: proxy,
        HTTPS_PROXY: proxy,
        http_proxy: proxy,
        https_proxy: proxy,
        NO_PROXY: 'localhost,127.0.0.1',
        no_proxy: 'localhost,127.0.0.1',
        // Node's own fetch heeds the others only then.
        NODE_USE_ENV_PROXY: '1',
      };
// Reached by name from here: the folder's path may be longer than a socket's may be.
process.chdir(linkDir);
if (proxyPort > 0) startEgressRelay('egress.sock', proxyPort);
const runner = new Runner({
  hubSocket: 'hub.sock',
  token,
  journal: new Journal(JOURNAL_FILE),
  tools: new Tools({ workspace, home, scratch: join(home, '.holdfast'), alone }),
  defaults: { LANG: 'C.UTF-8', TERM: 'dumb' },
  fixed: { PATH: process.env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin', HOME: home, ...network },
  leave: (code) => process.exit(code),
});
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => runner.stop(0));
runner.start();
