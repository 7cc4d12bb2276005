import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { DEFAULT_SANDBOX, type Environment } from '@holdfast/contracts';
import {
  holdSandboxes,
  launchChromium,
  startMcpServer,
  startPlatform,
  TestClient,
  type TestMcpServer,
  type TestPlatform,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { Browser, BrowserContext, Locator, Page } from 'playwright-core';

/** Where a sandbox of the platform runs: on the test bed's cluster, or here. */
const PLACE = process.env['SANDBOX_PROVIDER'] === 'kubernetes' ? 'node-\\d' : 'this machine';
/** Where to leave pictures of every page, for people to look at. */
const PICTURES = process.env.HOLDFAST_PICTURES;
const DESKTOP = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 800 };
const FILE_MAX_BYTES = 1024 ** 2;
/** A picture of one dot. */
const DOT = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==',
  'base64',
);

let platform: TestPlatform;
let tracker: TestMcpServer;
let browser: Browser;
let context: BrowserContext;
let page: Page;
const faults: string[] = [];

beforeAll(async () => {
  tracker = await startMcpServer((server) => {
    server.registerTool('find', { description: 'finds tickets' }, () => ({
      content: [{ type: 'text', text: 'TICKET-7 is open' }],
    }));
  });
  platform = await startPlatform({
    DASHBOARD_ALLOWED_HOSTS: 'dashboard.example',
    MCP_ALLOW_PRIVATE: tracker.host,
    FILE_MAX_BYTES: String(FILE_MAX_BYTES),
    HARNESSES: 'scripted',
  });
  browser = await launchChromium();
  context = await browser.newContext({ viewport: DESKTOP, baseURL: platform.dashboardUrl });
  // As browsers have it on every address but https and localhost.
  await context.addInitScript(() => Reflect.deleteProperty(Crypto.prototype, 'randomUUID'));
  page = await context.newPage();
  page.setDefaultTimeout(10_000);
  page.on('pageerror', (error) => faults.push(String(error)));
  page.on('console', (message) => {
    // A cut connection is logged by the browser itself; everything else is ours.
    if (message.type() === 'error' && !/Failed to load resource|net::ERR/.test(message.text()))
      faults.push(message.text());
  });
}, 240_000);
afterAll(async () => {
  await browser?.close();
  await platform?.stop();
  await tracker?.stop();
}, 60_000);

async function picture(name: string): Promise<void> {
  if (PICTURES === undefined) return;
  mkdirSync(PICTURES, { recursive: true });
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}
/** The same on either device, light and dark. */
async function pictures(name: string): Promise<void> {
  if (PICTURES === undefined) return;
  mkdirSync(PICTURES, { recursive: true });
  const size = page.viewportSize() ?? DESKTOP;
  for (const [device, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
    await page.setViewportSize(viewport);
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme });
      await page.screenshot({ path: join(PICTURES, `${name}-${device}-${colorScheme}.png`), animations: 'disabled' });
    }
  }
  await page.emulateMedia({ colorScheme: null });
  await page.setViewportSize(size);
}
async function say(text: string): Promise<void> {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}
const log = () => page.getByRole('log');
const sessionId = () => new URL(page.url()).pathname.split('/')[2] ?? '';
/** Sends events as another client of the session. */
async function sendFromElsewhere(text: string): Promise<void> {
  const sent = await fetch(`${platform.apiUrl}/v1/sessions/${sessionId()}/events`, {
    method: 'POST',
    headers: { 'x-api-key': platform.apiKey, 'content-type': 'application/json' },
    body: JSON.stringify({ events: [{ type: 'user.message', content: [{ type: 'text', text }] }] }),
  });
  expect(sent.status).toBe(200);
}
/** Waits until it is to be seen. */
const expectSeen = (locator: Locator) => expect(locator.waitFor()).resolves.toBeUndefined();
const expectGone = (locator: Locator) => expect(locator.waitFor({ state: 'hidden' })).resolves.toBeUndefined();

describe('signing in', () => {
  it('sends strangers to the sign-in page and takes no wrong key', async () => {
    await page.goto('/agents');
    await page.waitForURL(/sign-in\?next=%2Fagents$/);
    await page.getByLabel('API key', { exact: true }).fill('hf_wrong');
    await picture('sign-in');
    await page.getByRole('button', { name: 'Sign in' }).click();
    await expectSeen(page.getByText('This API key is not valid.'));
  });

  it('keeps the key out of the address when the page is not alive yet', async () => {
    const visitor = await browser.newContext({ baseURL: platform.dashboardUrl, javaScriptEnabled: false });
    const other = await visitor.newPage();
    const sent: string[] = [];
    other.on('request', (request) => sent.push(`${request.url()} ${request.postData() ?? ''}`));
    await other.goto('/sign-in');
    await other.getByLabel('API key', { exact: true }).fill(platform.apiKey);
    await other.keyboard.press('Enter');
    await other.waitForTimeout(300);
    expect(sent.length).toBeGreaterThan(1);
    expect(sent.join('\n')).not.toContain(platform.apiKey);
    await visitor.close();
  });

  it('takes an API key, and goes on to the page that was asked for', async () => {
    await page.getByLabel('API key', { exact: true }).fill(platform.apiKey);
    await page.keyboard.press('Enter');
    await page.waitForURL('**/agents');
    await expectSeen(page.getByRole('heading', { name: 'Agents' }));
    const cookies = await context.cookies();
    expect(cookies).toMatchObject([{ httpOnly: true, sameSite: 'Strict' }]);
    expect(JSON.stringify(cookies)).not.toContain(platform.apiKey);
  });

  it('takes the one-time link of bin/up once', async () => {
    const link = /http\S+#token=\S+/.exec(await platform.up('--detach'))?.[0] ?? '';
    for (const [works, visitor] of [
      [true, await browser.newContext()],
      [false, await browser.newContext()],
    ] as const) {
      const other = await visitor.newPage();
      await other.goto(link);
      if (works) await expectSeen(other.getByRole('heading', { name: 'Sessions' }));
      else await expectSeen(other.getByText('This link was used or has run out'));
      expect(other.url()).not.toContain('token');
      await visitor.close();
    }
  });

  it('refuses foreign hosts and changes from other sites', async () => {
    const cookie = (await context.cookies()).map(({ name, value }) => `${name}=${value}`).join('; ');
    const post = (headers: Record<string, string>) =>
      fetch(`${platform.dashboardUrl}/api/v1/agents`, { method: 'POST', headers: { cookie, ...headers }, body: '{}' });
    expect((await post({ origin: 'http://evil.example' })).status).toBe(403);
    expect((await post({ origin: 'null' })).status).toBe(403);
    expect((await post({ 'sec-fetch-site': 'cross-site' })).status).toBe(403);
    expect((await post({ origin: platform.dashboardUrl })).status).toBe(400);
    for (const [host, status] of [
      ['evil.example', 403],
      ['dashboard.example:8443', 200],
    ] as const)
      expect((await context.request.get('/agents', { headers: { host } })).status()).toBe(status);
    const policy = (await context.request.get('/agents')).headers()['content-security-policy'] ?? '';
    expect(policy).toMatch(/script-src 'self' 'nonce-\w+' 'strict-dynamic'/);
    expect(policy).toContain("img-src 'self' data:");
    const answer = await context.request.get('/api/v1/agents');
    expect(answer.headers()).toMatchObject({
      'content-security-policy': expect.stringContaining('sandbox'),
      'x-content-type-options': 'nosniff',
    });
  });
});

describe('agents', () => {
  it('are created, changed in versions, and looked at as they were', async () => {
    await page.goto('/agents/new');
    await page.getByLabel('Name', { exact: true }).fill('Tester');
    await expectSeen(page.getByLabel('Model', { exact: true }));
    await page.locator('option[value="demo"]').waitFor({ state: 'attached' });
    await page.getByLabel('Instructions', { exact: true }).fill('Be brief.');
    await page.getByLabel('May the agent use bash?').selectOption('always_ask');
    await page.getByLabel('Custom tools', { exact: true }).fill('not json');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByText('This is not JSON.'));
    await page
      .getByLabel('Custom tools', { exact: true })
      .fill('[{"type":"custom","name":"weather","description":"The weather","input_schema":{"type":"object"}}]');
    await picture('agent-new');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByRole('heading', { name: 'Tester' }));
    await page.getByLabel('Instructions', { exact: true }).fill('Be very brief.');
    await page.getByRole('button', { name: 'Save as a new version' }).click();
    await expectSeen(page.getByText('Saved as version 2.'));
    await expectSeen(page.getByText('Changed instructions'));
    await page.getByRole('button', { name: /^v1/ }).click();
    await expectSeen(page.getByText('This is version 1.'));
    await expect(page.getByLabel('Instructions', { exact: true }).inputValue()).resolves.toBe('Be brief.');
    await picture('agent');
  });

  it('are not saved over what somebody else saved, unless that is wanted', async () => {
    await page.getByRole('button', { name: 'Back to version 2' }).click();
    const id = new URL(page.url()).pathname.split('/').pop() ?? '';
    await page.request.post(`/api/v1/agents/${id}`, { data: { system: 'Theirs.' } });
    await page.getByLabel('Instructions', { exact: true }).fill('Mine.');
    await page.getByRole('button', { name: 'Save as a new version' }).click();
    await page.getByRole('button', { name: 'Save mine' }).click();
    await expectSeen(page.getByText('Saved as version 4.'));
    await expectGone(page.getByRole('button', { name: 'Save mine' }));
    const saved = await page.request.get(`/api/v1/agents/${id}`);
    expect(await saved.json()).toMatchObject({ version: 4, system: 'Mine.' });
  });
});

describe('a harness', () => {
  it('is chosen for an agent, of those that the platform has; its sessions run on it and say so', async () => {
    const client = new TestClient(platform);
    await page.goto('/agents/new');
    await page.getByLabel('Name', { exact: true }).fill('Coder');
    await page.locator('option[value="demo"]').waitFor({ state: 'attached' });
    await expectSeen(page.getByText('it needs no sandbox to answer'));
    await expect(page.getByLabel('Harness').locator('option').allInnerTexts()).resolves.toEqual([
      'native',
      'scripted 1',
    ]);
    await page.getByLabel('Harness').selectOption('scripted');
    await expectSeen(page.getByText('A coding harness in the session’s sandbox'));
    await pictures('agent-harness');
    await page
      .getByLabel('Custom tools', { exact: true })
      .fill('[{"type":"custom","name":"weather","description":"The weather","input_schema":{"type":"object"}}]');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByText('are not supported with the harness "scripted" yet'));
    await page.getByLabel('Custom tools', { exact: true }).fill('');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByRole('heading', { name: 'Coder' }));
    const agent_id = new URL(page.url()).pathname.split('/').pop() ?? '';
    const { id } = await client.json<{ id: string }>('/api/sessions', {
      json: { agent_id, prompt: 'RUN[echo from a harness]' },
    });
    await page.goto(`/sessions/${id}`);
    await expectSeen(page.getByText('scripted · demo'));
    await expectSeen(log().getByText(/The last result was:\s*from a harness/));
    await page.goto(`/agents/${agent_id}`);
    await page.getByLabel('Harness').selectOption('native');
    await page.getByRole('button', { name: 'Save as a new version' }).click();
    await expectSeen(page.getByText('Changed harness'));
    await client.json(`/v1/sessions/${id}`, { method: 'DELETE' });
    await client.json(`/v1/agents/${agent_id}/archive`, { method: 'POST' });
  });
});

describe('a chat', () => {
  it('runs a tool after it was allowed, and shows its output folded', async () => {
    await page.goto('/sessions');
    await expectSeen(page.getByText('No sessions yet'));
    await picture('sessions-empty');
    await page.getByRole('button', { name: 'New session' }).first().click();
    await page.getByLabel('First message').fill('RUN[echo from the $((40+2))th sandbox]');
    await picture('start');
    await page.getByRole('button', { name: 'Start', exact: true }).click();
    await page.waitForURL('**/sessions/sesn_*');
    await expectSeen(page.getByText('Allow this call?'));
    await picture('chat-approval');
    await expectSeen(page.getByRole('link', { name: 'Sessions 1 wait for you' }));
    await page.getByRole('button', { name: 'Allow', exact: true }).press('Enter');
    await expectSeen(page.getByLabel('done'));
    // Where the form was there is nothing now: the keyboard goes on in the message box.
    await expectSeen(page.locator('#composer:focus'));
    await page.getByText('bash', { exact: true }).click();
    await expectSeen(page.getByText('from the 42th sandbox', { exact: true }));
    await picture('chat-tool');
  });

  it('shows a denied call, and answers a custom tool', async () => {
    await say('RUN[rm -rf /]');
    await page.getByLabel('Why bash is denied').fill('far too much');
    await page.getByRole('button', { name: 'Deny' }).click();
    await expectSeen(page.getByLabel('denied'));
    await say('ASK[weather]');
    await page.getByLabel('weather is a tool of the client').fill('sunny, 21 degrees');
    await page.getByRole('button', { name: 'Send the result' }).click();
    await expectSeen(page.getByText('sunny, 21 degrees').first());
    await expectSeen(page.getByText('Idle', { exact: true }));
  });

  it('shows what the model thought, folded, and a call to an MCP server under its name, and asks before it', async () => {
    const before = page.url();
    const client = new TestClient(platform);
    const agent = await client.json<{ id: string }>('/v1/agents', {
      json: {
        name: 'Thinker',
        model: 'demo-thinking',
        mcp_servers: [{ type: 'url', name: 'tracker', url: tracker.url }],
        tools: [{ type: 'mcp_toolset', mcp_server_name: 'tracker' }],
      },
    });
    const { id } = await client.json<{ id: string }>('/api/sessions', { json: { agent_id: agent.id } });
    await page.goto(`/sessions/${id}`);
    await say('THINK[the tracker may know] ASK[mcp__tracker__find] REFUSE[enough]');
    await expectSeen(page.getByText('Allow this call?'));
    await expectSeen(page.getByText('tracker › find', { exact: true }));
    await page.getByRole('button', { name: 'Allow', exact: true }).press('Enter');
    await expectSeen(page.getByLabel('done'));
    await page.getByText('tracker › find', { exact: true }).click();
    await expectSeen(page.getByText('TICKET-7 is open', { exact: true }));
    await expectSeen(page.getByText('The model refused to answer'));
    await expectSeen(page.getByText('Refused', { exact: true }));
    await page.getByText('Thought', { exact: true }).click();
    await expectSeen(page.getByLabel('thinking').getByText('the tracker may know', { exact: true }).last());
    await picture('chat-thinking');
    await client.json(`/v1/sessions/${id}`, { method: 'DELETE' });
    await page.goto(before);
  });

  it('streams, and after a reload and a cut connection goes on with nothing lost or doubled', async () => {
    await say('SLOW[60]');
    await expectSeen(page.getByText(/word 5\b|w5\b|5/).first());
    await expectSeen(log().locator('[aria-busy=true]'));
    await picture('chat-streaming');
    await page.reload();
    await expectSeen(log().locator('[aria-busy=true]'));
    platform.kill('gateway-api');
    await expectSeen(page.getByText('Reconnecting…'));
    await expectSeen(page.getByText('Idle', { exact: true }));
    await expectGone(page.getByText('Reconnecting…'));
    const list = await fetch(`${platform.apiUrl}/v1/sessions/${sessionId()}/events?types[]=agent.message`, {
      headers: { 'x-api-key': platform.apiKey },
    });
    const { data } = (await list.json()) as { data: { content: { text: string }[] }[] };
    const articles = await log().getByRole('article', { name: 'agent' }).allInnerTexts();
    const words = (text: string) => text.split(/\s+/).filter((word) => word !== '');
    const shown = articles.map((article) =>
      words(article)
        .join(' ')
        .replace(/ \d\d:\d\d [AP]M$/, ''),
    );
    expect(shown).toEqual(data.map((event) => words(event.content.map((block) => block.text).join(' ')).join(' ')));
  });

  it('queues messages behind a running turn, and interrupts', async () => {
    await say('SLOW[200]');
    await expectSeen(page.getByRole('button', { name: 'Interrupt' }));
    await say('and then this');
    await expectSeen(page.getByText('queued', { exact: true }));
    await picture('chat-queued');
    // Who reads further up is left there, and told that there is more.
    await log().evaluate((node) => node.parentElement?.scrollTo(0, 0));
    await expectSeen(page.getByRole('button', { name: 'Go to the end' }));
    await page.waitForTimeout(400);
    expect(await log().evaluate((node) => node.parentElement?.scrollTop)).toBe(0);
    await page.getByRole('button', { name: 'Go to the end' }).click();
    await expectGone(page.getByRole('button', { name: 'Go to the end' }));
    await page.getByLabel('Message', { exact: true }).press('Escape');
    await expectSeen(page.getByText('Interrupted', { exact: true }));
    await expectGone(page.getByText('queued', { exact: true }));
    await expectSeen(page.getByText('Idle', { exact: true }));
  });

  it('never makes HTML of what is said', async () => {
    await say(
      '<img src=x onerror="document.title=1"><b id=bold>x</b> [link](javascript:alert(1)) ![i](http://evil.example/x.png)',
    );
    await expectSeen(page.getByText('Idle', { exact: true }));
    await page.waitForTimeout(300);
    expect(await log().locator('img, #bold, script, iframe').count()).toBe(0);
    const targets = await log()
      .locator('a')
      .evaluateAll((links) => links.map((link) => link.getAttribute('href')));
    expect(targets.filter((href) => href?.startsWith('javascript'))).toEqual([]);
  });

  it('shows an error of the model', async () => {
    await say('ERR[400]');
    await expectSeen(log().getByRole('alert'));
    await picture('chat-error');
  });

  it('gives its connection back while nobody looks, and then goes on', async () => {
    const look = (state: 'hidden' | 'visible') =>
      page.evaluate((value) => {
        Object.defineProperty(document, 'visibilityState', { value, configurable: true });
        Object.defineProperty(document, 'hidden', { value: value === 'hidden', configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
      }, state);
    const cut = page.waitForEvent('requestfailed', (request) => request.url().includes('/events/stream'));
    await look('hidden');
    await cut;
    await sendFromElsewhere('said while nobody looked');
    expect(await page.getByText('said while nobody looked').count()).toBe(0);
    await look('visible');
    await expectSeen(page.getByText('You said: said while nobody looked'));
  });

  it('notices that the network went, and goes on when it is back', async () => {
    await context.setOffline(true);
    await expectSeen(page.getByText('Reconnecting…'));
    await sendFromElsewhere('said while we were away');
    await context.setOffline(false);
    await expectSeen(page.getByText('You said: said while we were away'));
    await expectGone(page.getByText('Reconnecting…'));
  });

  it('shows the same in two tabs, and takes a word from either', async () => {
    const other = await context.newPage();
    await other.goto(page.url());
    await say('RUN[echo both]');
    await other.getByRole('button', { name: 'Allow', exact: true }).click();
    await expectGone(page.getByText('Allow this call?'));
    for (const tab of [page, other]) await expectSeen(tab.getByText('The last result was: both'));
    await other.close();
  });

  it('says that the API is away, and opens when it is back', async () => {
    await page.route('**/api/v1/sessions/sesn_*', (route) => route.abort());
    await page.reload();
    await expectSeen(page.getByText('The API cannot be reached. Trying again…'));
    await page.unroute('**/api/v1/sessions/sesn_*');
    await expectSeen(log());
    await page.goto('/sessions/sesn_00000000000000000000000000000000');
    await expectSeen(page.getByText('There is no session'));
    await page.goBack();
    await expectSeen(log());
  });

  it('is renamed, and driven by the commands that it shows', async () => {
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Rename' }).click();
    await page.getByLabel('Title').fill('Renamed here');
    await page.keyboard.press('Enter');
    await expectSeen(page.getByRole('heading', { name: 'Renamed here' }));
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Details and API' }).click();
    await picture('details');
    const shown = async (language: string): Promise<string> => {
      await page.getByRole('tab', { name: language }).click();
      return (await page.getByRole('tabpanel').locator('pre').textContent()) ?? '';
    };
    const env = { ...process.env, HOLDFAST_API_KEY: platform.apiKey };
    const run = promisify(execFile);
    const curl = (await shown('curl')).split('# Follow it')[0] ?? '';
    expect(JSON.parse((await run('bash', ['-c', curl], { env })).stdout)).toMatchObject({
      data: [{ type: 'user.message', processed_at: null }],
    });
    await expectSeen(page.getByText('You said: Hello').first());
    const typescript = ['--input-type=module-typescript', '--eval', await shown('TypeScript')];
    expect((await run(process.execPath, typescript, { env, timeout: 20_000 })).stdout).toContain('You said: Hello');
    await page.keyboard.press('Escape');
    await expectGone(page.getByRole('dialog'));
  });

  it('has a timeline with every event of the log, also those that come', async () => {
    await page.getByRole('link', { name: 'Timeline' }).click();
    await expectSeen(page.getByText('session.created', { exact: true }).first());
    await page.getByText('agent.tool_result').first().click();
    await page.getByLabel('Filter events').fill('agent.tool_result');
    await expectGone(page.getByText('session.created', { exact: true }).first());
    await picture('timeline');
    await page.getByLabel('Filter events').fill('');
    // What became of the sandbox stands where it happened.
    await page.getByRole('button', { name: 'Files, sandbox, forks' }).click();
    await expectGone(page.getByText('session.created', { exact: true }).first());
    const ready = page.getByRole('listitem').filter({ hasText: 'sandbox.ready' }).first();
    await expectSeen(ready.getByLabel('of its sandbox'));
    await expectSeen(ready.getByText(/^Ready/));
    const kept = page.getByRole('listitem').filter({ hasText: 'session.checkpointed' }).first();
    await expectSeen(kept.getByText(/^Files kept, as they were after event \d+$/));
    await expectSeen(page.getByText(/^\d+ entr(y|ies), .* new, in \d+ ms$/).first());
    await pictures('timeline-milestones');
    await ready.click();
    expect(await ready.getByRole('button', { name: 'Fork here' }).count()).toBe(0);
    await page.getByRole('button', { name: 'Everything' }).click();
    await expectSeen(page.getByText('session.created', { exact: true }).first());
    await page.getByLabel('Filter events').fill('said after the page was there');
    await sendFromElsewhere('said after the page was there');
    await expectSeen(page.getByText('agent.message', { exact: true }));
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'Download' }).click(),
    ]);
    const lines = readFileSync(await download.path(), 'utf8')
      .trimEnd()
      .split('\n');
    expect(lines.map((line) => (JSON.parse(line) as { version: number }).version)).toEqual(lines.map((_, i) => i + 1));
    await page.getByRole('link', { name: 'Chat' }).click();
  });

  it('is forked from any message by one click; both go on, and each shows the other', async () => {
    const parent = sessionId();
    const address = page.url().replace(/\/timeline$/, '');
    await page.goto(address);
    await say('what both know');
    await expectSeen(log().getByText('You said: what both know'));
    await say('what only the first knows');
    await expectSeen(log().getByText('You said: what only the first knows'));
    const shared = log().getByRole('article', { name: 'agent' }).filter({ hasText: 'You said: what both know' });
    await shared.hover();
    await picture('fork-message');
    await shared.getByRole('button', { name: 'Fork from this message' }).click();
    await page.waitForURL((url) => /sesn_/.test(url.pathname) && !url.pathname.includes(parent));
    const fork = sessionId();
    await expectSeen(log().getByRole('separator', { name: 'Forked here' }).getByText('with a copy of its files'));
    await expectSeen(log().getByText('You said: what both know'));
    expect(await log().getByText('what only the first knows').count()).toBe(0);
    await say('what only the fork knows');
    await expectSeen(log().getByText('You said: what only the fork knows'));
    await pictures('fork');
    // A fork of the fork, from its timeline; then all three as a tree.
    await page.getByRole('link', { name: 'Timeline' }).click();
    await page.getByLabel('Filter events').fill('session.forked');
    await page.getByText('session.forked', { exact: true }).click();
    await expectSeen(page.getByRole('link', { name: 'Open what it was forked from' }));
    await pictures('fork-timeline');
    await page.getByRole('button', { name: 'Fork here' }).click();
    await page.waitForURL((url) => /sesn_/.test(url.pathname) && !/timeline/.test(url.pathname));
    const second = sessionId();
    expect(second).not.toBe(fork);
    await page.getByRole('button', { name: /forked from .* · 3 in the family/ }).click();
    const members = page.getByRole('dialog', { name: 'Forks' }).getByRole('listitem');
    await expect(members.count()).resolves.toBe(3);
    await expectSeen(members.nth(0).getByText('not a fork'));
    await expectSeen(members.nth(2).getByText('(this one)'));
    await pictures('fork-tree');
    await members.nth(0).getByRole('link').click();
    await page.waitForURL(address);
    await expectSeen(log().getByText('You said: what only the first knows'));
    expect(await log().getByText('what only the fork knows').count()).toBe(0);
    await page.getByRole('link', { name: 'Timeline' }).click();
    await page.getByLabel('Filter events').fill('fork_created');
    await page.getByText('session.fork_created', { exact: true }).click();
    await page.getByRole('link', { name: 'Open the fork' }).click();
    await page.waitForURL(new RegExp(`${fork}$`));
    for (const id of [fork, second]) await new TestClient(platform).json(`/v1/sessions/${id}`, { method: 'DELETE' });
    await page.goto(address);
  });

  it('is archived', async () => {
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Archive' }).click();
    await page.getByRole('button', { name: 'Archive' }).click();
    await expectSeen(page.getByText('takes no more messages').first());
  });
});

describe('files', () => {
  const chips = () => page.getByRole('list', { name: 'Attached files' }).getByRole('listitem');
  const choose = async (...files: { name: string; mimeType: string; buffer: Buffer }[]) => {
    const chooser = page.waitForEvent('filechooser');
    await page.getByRole('button', { name: 'Attach files' }).press('Enter');
    await (await chooser).setFiles(files);
  };
  const textFile = (name: string, text: string) => ({ name, mimeType: 'text/csv', buffer: Buffer.from(text) });
  /** Lets go of files over the page, as a person does who dragged them there. */
  const drop = async (name: string, text: string) => {
    const data = await page.evaluateHandle(
      ([called, content]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([content ?? ''], called ?? '', { type: 'text/plain' }));
        return transfer;
      },
      [name, text],
    );
    await page.dispatchEvent('body', 'dragenter', { dataTransfer: data });
    await expectSeen(page.getByText('Drop files to attach them'));
    await pictures('chat-drop');
    await page.dispatchEvent('body', 'drop', { dataTransfer: data });
    await expectGone(page.getByText('Drop files to attach them'));
  };
  const download = async (press: () => Promise<unknown>): Promise<string> => {
    const [file] = await Promise.all([page.waitForEvent('download'), press()]);
    return readFileSync(await file.path(), 'utf8');
  };
  let session = '';

  it('go with a message: the agent has them in its sandbox, the model sees pictures, and the chat gives them back', async () => {
    session = await new TestClient(platform).session();
    await page.goto(`/sessions/${session}`);
    await expectSeen(page.getByText('Nothing was said yet'));
    await choose(textFile('numbers 1.csv', 'a,b\n1,2\n'), { name: 'dot.png', mimeType: 'image/png', buffer: DOT });
    await drop('übersicht.txt', 'dropped');
    await expect(chips().allInnerTexts()).resolves.toMatchObject([
      expect.stringContaining('numbers 1.csv'),
      expect.stringContaining('dot.png'),
      expect.stringContaining('übersicht.txt'),
    ]);
    await expectSeen(page.getByRole('button', { name: 'Remove übersicht.txt' }));
    // What was uploaded is not lost with the page.
    await page
      .getByLabel('Message', { exact: true })
      .fill('RUN[cat /mnt/session/uploads/*/*.csv /mnt/session/uploads/*/*.txt]');
    await page.reload();
    await expectSeen(page.getByRole('button', { name: 'Remove dot.png' }));
    await pictures('chat-attachments');
    await page.getByRole('button', { name: 'Send' }).click();
    await expectSeen(log().getByText(/The last result was:\s*a,b\s*1,2\s*dropped/));
    await expect(chips().count()).resolves.toBe(0);
    const message = log().getByRole('article', { name: 'user' }).first();
    await expectSeen(message.getByRole('img', { name: 'attached' }));
    await expect(download(() => message.getByRole('link', { name: 'numbers 1.csv' }).click())).resolves.toBe(
      'a,b\n1,2\n',
    );
    await pictures('chat-attached');
    await page.reload();
    await expectSeen(log().getByRole('link', { name: 'übersicht.txt' }));
  });

  it('that are too large are refused before they are sent, and by the server too; an upload is cancelled, and tried again', async () => {
    await choose({ name: 'large.bin', mimeType: 'application/zip', buffer: Buffer.alloc(FILE_MAX_BYTES + 1) });
    await expectSeen(chips().getByText('Larger than the 1.0 MiB that the server takes'));
    await expect(page.getByRole('button', { name: 'Send' }).isDisabled()).resolves.toBe(true);
    await pictures('chat-attachment-refused');
    await page.getByRole('button', { name: 'Remove large.bin' }).click();
    const answer = await page.evaluate(async (bytes) => {
      const form = new FormData();
      form.append('file', new Blob([new Uint8Array(bytes)]), 'a');
      const response = await fetch('/api/v1/files', { method: 'POST', body: form });
      return [response.status, await response.text()];
    }, FILE_MAX_BYTES * 8);
    expect(answer).toEqual([413, expect.stringContaining('request_too_large')]);

    let held = 0;
    await page.route('**/api/v1/files', () => void (held += 1));
    await choose(textFile('slow.csv', 'a'));
    await page.getByLabel('Message', { exact: true }).fill('with a file');
    await page.getByLabel('Message', { exact: true }).press('Enter');
    await expectSeen(page.getByText('Can be sent once the files are uploaded'));
    await expectSeen(page.getByRole('progressbar', { name: 'Upload of slow.csv' }));
    const cut = page.waitForEvent('requestfailed', (request) => request.url().endsWith('/v1/files'));
    await page.getByRole('button', { name: 'Cancel the upload of slow.csv' }).click();
    await cut;
    await expect(chips().count()).resolves.toBe(0);
    expect(held).toBe(1);
    await page.unroute('**/api/v1/files');
    await page.route('**/api/v1/files', (route) => route.abort());
    await choose(textFile('again.csv', 'a'));
    await expectSeen(chips().getByText('The server cannot be reached'));
    await page.unroute('**/api/v1/files');
    await page.getByRole('button', { name: 'Upload again.csv again' }).click();
    await expectSeen(page.getByRole('button', { name: 'Remove again.csv' }));
    await page.getByLabel('Message', { exact: true }).press('Enter');
    await expectSeen(log().getByText('You said: with a file'));
    await expectSeen(log().getByRole('link', { name: 'again.csv' }));
  });

  it('that the agent left are listed with their session, page by page, and downloaded', async () => {
    await page.getByRole('link', { name: 'Files' }).click();
    await expectSeen(page.getByText('The agent has left no files yet'));
    await pictures('outputs-empty');
    await page.getByRole('link', { name: 'Chat' }).click();
    const name = `${'a-long-name-'.repeat(12)}.txt`;
    await say(
      `RUN[cd /mnt/session/outputs && mkdir -p charts && echo done > charts/report.md && seq 60 | xargs -I N sh -c 'echo N > N.txt' && seq 100000 > ${name}]`,
    );
    await expectSeen(log().getByText('The last result was').last());
    await expectSeen(page.getByText('Idle', { exact: true }));
    await page.getByRole('link', { name: 'Files' }).click();
    await page.getByRole('listitem').first().waitFor();
    await expect(page.getByRole('listitem').count()).resolves.toBe(50);
    await page.getByRole('button', { name: 'Show more' }).click();
    await page.getByRole('listitem').nth(61).waitFor();
    await expect(page.getByRole('listitem').count()).resolves.toBe(62);
    await expectSeen(page.getByRole('listitem').filter({ hasText: name }).getByText('575.1 KiB'));
    const report = page.getByRole('link', { name: 'charts/report.md' });
    await expect(download(() => report.press('Enter'))).resolves.toBe('done\n');
    await report.scrollIntoViewIfNeeded();
    await pictures('outputs');
    await page.route('**/api/v1/files?*', (route) =>
      route.fulfill({ status: 500, json: { error: { message: 'Broken.' } } }),
    );
    await page.reload();
    await expectSeen(page.getByText('Broken.'));
    await page.unroute('**/api/v1/files?*');
    await page.getByRole('button', { name: 'Try again' }).click();
    await expectSeen(report);
    await new TestClient(platform).json(`/v1/sessions/${session}`, { method: 'DELETE' });
  });
});

describe('environments', () => {
  const saved = async (): Promise<Environment | undefined> =>
    (await new TestClient(platform).json<{ data: Environment[] }>('/v1/environments')).data.find(
      ({ name }) => name === 'offline',
    );

  it('are made with a network and a sandbox, and say what is wrong as the API does', async () => {
    await page.goto('/environments');
    await page.getByRole('button', { name: 'New environment' }).click();
    await page.getByLabel('Name', { exact: true }).fill('offline');
    await page.getByLabel('Allowed hosts').fill('example.com\n*.example.org');
    await page.getByText('Sandbox', { exact: true }).click();
    await page.getByLabel('Pool size').fill('201');
    await page.getByLabel('Memory').fill('lots');
    await page.getByLabel('Image').fill('python 3.13');
    await page.getByLabel('Tolerated taints').fill('gpu=yes:NoSchedule\nspot:Never');
    // Whoever folds it must still see why it cannot be made.
    await page.getByText('Sandbox', { exact: true }).click();
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByText('must be at most 200'));
    await expectSeen(page.getByText('must be a whole number'));
    await expectSeen(page.getByText('must be an image reference'));
    await expectSeen(page.getByText(/^line 2 must be one of/));
    expect(await page.locator('[aria-invalid=true]').count()).toBe(4);
    await pictures('environment-faults');
    await page.getByLabel('Pool size').fill('5');
    await page.getByLabel('Memory').fill('512');
    await page.getByLabel('Image').fill('registry.example/python:3.13');
    await page.getByLabel('Tolerated taints').fill('gpu=yes:NoSchedule');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    const row = page.getByRole('listitem').filter({ hasText: 'offline' });
    await expectSeen(row.getByText('example.com, *.example.org'));
    await expectSeen(row.getByText('pool of 5'));
    expect((await saved())?.config).toHaveProperty('x_sandbox', {
      ...DEFAULT_SANDBOX,
      pool_size: 5,
      memory_mib: 512,
      image: 'registry.example/python:3.13',
      tolerations: [{ key: 'gpu', operator: 'Equal', value: 'yes', effect: 'NoSchedule' }],
    });
    await pictures('environments');
  });

  it('are changed, with what they had in the form', async () => {
    const row = page.getByRole('listitem').filter({ hasText: 'offline' });
    await row.getByRole('button', { name: 'Edit' }).click();
    await page.getByText('Sandbox', { exact: true }).click();
    await expect(page.getByLabel('Pool size').inputValue()).resolves.toBe('5');
    await expect(page.getByLabel('Tolerated taints').inputValue()).resolves.toBe('gpu=yes:NoSchedule');
    await pictures('environment-edit');
    await page.getByLabel('Memory').fill('');
    await page.getByLabel('Workspace', { exact: true }).selectOption('ephemeral');
    await page.getByLabel('Node labels').fill('disk=ssd');
    await page.getByRole('button', { name: 'Save' }).click();
    await expectGone(page.getByRole('dialog'));
    expect((await saved())?.config).toMatchObject({
      networking: { type: 'limited', allowed_hosts: ['example.com', '*.example.org'] },
      x_sandbox: { pool_size: 5, memory_mib: null, workspace: 'ephemeral', node_selector: { disk: 'ssd' } },
    });
  });

  it('are self-hosted: they have keys for workers, and a session says whether one polls and which one has it', async () => {
    await page.getByRole('button', { name: 'New environment' }).click();
    await page.getByLabel('Name', { exact: true }).fill('ours');
    await page.getByLabel('Tools run').selectOption('self_hosted');
    await expectGone(page.getByLabel('Allowed hosts'));
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    const row = page.getByRole('listitem').filter({ hasText: 'ours' });
    await expectSeen(row.getByText('self-hosted'));
    await row.getByRole('button', { name: 'Workers' }).click();
    await expectSeen(page.getByText('No worker is polling'));
    await page.getByRole('button', { name: 'New key' }).click();
    await page.getByLabel('Name', { exact: true }).fill('builders');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    const key = (await page.getByText(/^hfe_[\w-]{20,}$/).textContent())?.trim() ?? '';
    await page.getByRole('button', { name: 'Done' }).click();
    await expectSeen(page.getByRole('listitem').filter({ hasText: 'builders' }));
    await pictures('environment-workers');

    const client = new TestClient(platform);
    const environments = await client.json<{ data: Environment[] }>('/v1/environments');
    const { id } = environments.data.find(({ name }) => name === 'ours') ?? { id: '' };
    const json = { name: 'far', model: 'demo', tools: [{ type: 'agent_toolset_20260401' }] };
    const agent = await client.json<{ id: string }>('/v1/agents', { json });
    const said = { type: 'user.message', content: [{ type: 'text', text: 'RUN[hostname]' }] };
    const session = await client.json<{ id: string }>('/v1/sessions', {
      json: { agent: agent.id, environment_id: id, initial_events: [said] },
    });
    await page.goto(`/sessions/${session.id}`);
    await expectSeen(page.getByText('Waits for a worker'));
    await expectSeen(page.getByText('no worker is polling'));
    await pictures('session-without-worker');
    const headers = { 'x-api-key': '', authorization: `Bearer ${key}`, 'anthropic-worker-id': 'builder-1' };
    const work = await client.json<{ id: string }>(`/v1/environments/${id}/work/poll?block_ms=999`, { headers });
    for (const verb of ['ack', 'heartbeat?expected_last_heartbeat=NO_HEARTBEAT'])
      await client.json(`/v1/environments/${id}/work/${work.id}/${verb}`, { method: 'POST', headers });
    await expectSeen(page.getByText('builder-1, last heard of'));
    await pictures('session-with-worker');
    const { waiting_calls } = await client.json<{ waiting_calls: string[] }>(`/v1/sessions/${session.id}/x/worker`);
    const result = {
      type: 'user.tool_result',
      tool_use_id: waiting_calls[0],
      content: [{ type: 'text', text: 'far' }],
    };
    await client.json(`/v1/sessions/${session.id}/events`, { json: { events: [result] } });
    await expectSeen(log().getByText('Done. The last result was'));
    await client.json(`/v1/environments/${id}/work/${work.id}/stop`, { method: 'POST', headers });
    // A call that no worker comes for is given up.
    await say('RUN[for nobody]');
    await expectSeen(page.getByText('Waits for a worker'));
    await page.getByRole('button', { name: 'Interrupt' }).click();
    await expectSeen(page.getByText('Interrupted', { exact: true }));
    await expectSeen(page.getByText('Idle', { exact: true }));
    await client.json(`/v1/sessions/${session.id}`, { method: 'DELETE' });
  });
});

describe('sandboxes', () => {
  /** As the sandbox service records them on a cluster; the last one is the newest. */
  const record = async (...rows: readonly Readonly<Record<string, unknown>>[]): Promise<void> => {
    const [pooled] = await platform.query(
      "select id, resource->'config' as config from environments where name = 'offline'",
    );
    await platform.query(
      `insert into sandboxes (id, workspace_id, session_id, environment_id, environment, provider, status, incarnation,
         reason, launch, namespace, pod, node, isolation, claimed_at, ready_at, created_at, owner, owner_expires_at)
       select id, 'wrkspc_default', coalesce(session_id, 'sesn_of_' || id), $2, $3, 'kubernetes', status, 1, reason,
         launch, 'holdfast-default', pod, node, isolation, claimed_at, claimed_at, coalesce(created_at, clock_timestamp()),
         'another replica', clock_timestamp() + interval '1 hour'
       from jsonb_to_recordset($1) as t (id text, session_id text, status text, reason jsonb, launch text, pod text,
         node text, isolation text, claimed_at timestamptz, created_at timestamptz)`,
      [JSON.stringify(rows), pooled?.['id'], pooled?.['config']],
    );
  };
  const row = (text: string) => page.getByRole('listitem').filter({ hasText: text });
  const unschedulable = {
    code: 'unschedulable',
    message: '0/2 nodes are available: 2 Insufficient memory.',
  } as const;

  it('are none at first, and the page says how to get one', async () => {
    await page.goto('/sandboxes');
    await expectSeen(page.getByText('No sandboxes', { exact: true }));
    await expectSeen(page.getByRole('link', { name: 'Go to the sessions' }));
    await expectSeen(row('offline').getByText('0 of 5 ready'));
    await expectSeen(row('offline').getByText('a pool needs a Kubernetes cluster'));
    await pictures('sandboxes-empty');
  });

  it('appear by themselves with state, place, start and reason, and the pools with their fill', async () => {
    const now = new Date().toISOString();
    const old = new Date(Date.now() - 3 * 86_400_000).toISOString();
    await record(
      { id: 'sbx_slept', status: 'suspended', launch: 'cold', created_at: old },
      { id: 'sbx_gone', status: 'destroyed', launch: 'warm', created_at: old },
      {
        id: 'sbx_broken',
        status: 'failed',
        reason: { code: null, message: 'The runner could not be read.', since: now },
      },
      {
        id: 'sbx_warm',
        status: 'ready',
        launch: 'warm',
        pod: 'offline-x7k2p',
        node: 'worker-1',
        claimed_at: now,
        isolation: 'gvisor',
      },
      {
        id: 'sbx_woken',
        status: 'ready',
        launch: 'resumed',
        pod: 'offline-b9q4z',
        node: 'worker-2.zone-a.cluster.example',
        claimed_at: now,
      },
      { id: 'sbx_stuck', status: 'starting', launch: 'cold', reason: { ...unschedulable, since: now } },
      { id: 'sbx_young', status: 'starting', launch: 'cold' },
    );
    await platform.query(
      `insert into sandbox_pools (environment_id, workspace_id, size, ready, reason)
       select id, workspace_id, 5, 3, $1 from environments where name = 'offline'`,
      [unschedulable],
    );
    await expectSeen(row('sbx_warm').getByText('worker-1', { exact: true }));
    await expectSeen(row('sbx_warm').getByText('offline-x7k2p'));
    await expectSeen(row('sbx_woken').getByText('resumed', { exact: true }));
    await expectSeen(row('sbx_stuck').getByText('no node can take it'));
    await expectSeen(row('sbx_broken').getByText('The runner could not be read.'));
    const pool = page.getByRole('listitem').filter({ hasText: 'claims / min' });
    await expectSeen(pool.getByText('3 of 5 ready'));
    await expectSeen(pool.getByText('2 claims / min'));
    await expectSeen(pool.getByText('2 waiting'));
    await expectSeen(pool.getByText('2 Insufficient memory'));
    expect(await row('sbx_gone').count()).toBe(0);
    await pictures('sandboxes');
  });

  it('are filtered by state and environment, and the address keeps that', async () => {
    const states = page.getByRole('group', { name: 'Show' });
    await states.getByRole('button', { name: 'Failed' }).click();
    await expectSeen(row('sbx_broken'));
    await expectGone(row('sbx_warm'));
    await states.getByRole('button', { name: 'Destroyed' }).click();
    await expectSeen(row('sbx_gone'));
    await page.getByLabel('Environment').selectOption('default');
    await expectGone(row('sbx_gone'));
    await page.waitForURL(/view=destroyed&environment=env_/);
    await page.goBack();
    await expectSeen(row('sbx_gone'));
    await page.reload();
    await expectSeen(row('sbx_gone'));
    await states.getByRole('button', { name: 'Starting' }).click();
    await expectSeen(row('sbx_stuck'));
    await page.getByLabel('Environment').selectOption('default');
    await expectSeen(page.getByText('No sandbox is starting'));
    await page.getByRole('button', { name: 'Show all sandboxes' }).click();
    await page.waitForURL('**/sandboxes');
    await page.getByRole('link', { name: 'offline' }).click();
    await page.waitForURL(/environment=env_/);
    await expectSeen(row('sbx_warm'));
  });

  it('say what is wrong and what to do, and where everything is', async () => {
    await row('sbx_stuck').getByRole('link', { name: 'sbx_stuck', exact: true }).click();
    await page.waitForURL('**/sandboxes/sbx_stuck');
    const why = page.getByRole('status').filter({ hasText: 'no node can take it' });
    await expectSeen(why.getByText('0/2 nodes are available'));
    await expectSeen(why.getByText('add a node, ask for less CPU or memory'));
    await expectSeen(page.getByText('Nothing happened yet'));
    await pictures('sandbox-stuck');
    await page.goto('/sandboxes/sbx_warm');
    for (const fact of ['worker-1', 'offline-x7k2p', 'holdfast-default', 'gvisor', 'warm, taken from the pool'])
      await expectSeen(page.getByText(fact, { exact: true }));
    await page.goto('/sandboxes/sbx_none');
    await expectSeen(page.getByText('There is no sandbox sbx_none'));
    await page.getByRole('link', { name: 'All sandboxes' }).click();
    await expectSeen(row('sbx_warm'));
  });

  it('come page by page when they are many, and say when they cannot be read', async () => {
    const created_at = new Date(Date.now() - 86_400_000).toISOString();
    await record(
      ...Array.from({ length: 60 }, (_, n) => ({
        id: `sbx_many${n}`,
        status: 'destroyed',
        launch: 'warm',
        created_at,
      })),
    );
    await page.getByRole('button', { name: 'Destroyed' }).click();
    const rows = page.getByRole('listitem').filter({ hasText: 'Destroyed' });
    await expectSeen(rows.first());
    expect(await rows.count()).toBe(50);
    await page.getByRole('button', { name: 'Show more' }).click();
    await expectSeen(row('sbx_gone'));
    // With those that the archived session and the deleted ones left.
    expect(await rows.count()).toBe(64);
    await page.route('**/api/v1/x/sandbox*', (route) =>
      route.fulfill({ status: 400, json: { error: { message: 'It is out of order.' } } }),
    );
    await page.reload();
    await expectSeen(page.getByText('It is out of order.').last());
    await pictures('sandboxes-error');
    await page.unroute('**/api/v1/x/sandbox*');
    await page.getByRole('button', { name: 'Try again' }).click();
    await expectSeen(rows.first());
  });

  it('that a session waits for are told in its chat, calmly and at once, until the result is there', async () => {
    const id = await new TestClient(platform).session();
    await page.goto(`/sessions/${id}`);
    const held = await holdSandboxes(platform, { code: 'pool-empty', message: 'The pool of 5 is used up.' });
    try {
      await say('RUN[echo at last]');
      await expectSeen(log().getByText('Waiting for a sandbox: nothing warm was left'));
      const since = Date.now();
      held.tell(unschedulable);
      await expectSeen(log().getByText('Waiting for a sandbox: no node can take it'));
      await expectSeen(log().getByText('add a node, ask for less CPU or memory'));
      expect(Date.now() - since).toBeLessThan(2_000);
      expect(await log().getByRole('alert').count()).toBe(0);
      expect(
        await log()
          .getByText(/^Waiting for a sandbox/)
          .count(),
      ).toBe(1);
      await record({
        id: 'sbx_awaited',
        session_id: id,
        status: 'starting',
        reason: { ...unschedulable, since: new Date() },
      });
      await expectSeen(page.getByRole('link', { name: 'Sandbox: starting, no node can take it' }));
      await pictures('chat-waiting');
      await platform.query("delete from sandboxes where id = 'sbx_awaited'");
    } finally {
      await held.release();
    }
    await expectSeen(page.getByText('The last result was: at last'));
    await expectGone(log().getByText('Waiting for a sandbox:'));
    await expectSeen(log().getByText(/^Waited \d.* for a sandbox: no node can take it$/));
    const place = page.getByRole('link', { name: new RegExp(`^Sandbox: ready, ${PLACE}`) });
    await expectSeen(place);
    await pictures('chat-waited');
    await place.click();
    await page.waitForURL('**/sandboxes/sbx_*');
    await expectSeen(page.getByText(new RegExp(PLACE)).first());
    await expectSeen(page.getByText('sandbox.ready', { exact: true }));
    await pictures('sandbox');
    await page.getByRole('link', { name: 'Session', exact: true }).click();
    await page.waitForURL(`**/sessions/${id}`);
    await new TestClient(platform).json(`/v1/sessions/${id}/archive`, { method: 'POST' });
  });
});

describe('the other pages', () => {
  it('list sessions with their status, by view, agent and text, and go back through that', async () => {
    await page.goto('/sessions');
    await expectSeen(page.getByText('No sessions yet'));
    await page.getByRole('button', { name: 'Archived' }).click();
    const row = page.getByRole('listitem').filter({ hasText: 'Renamed here' });
    await expectSeen(row.getByText('Archived', { exact: true }));
    await picture('sessions');
    await page.keyboard.press('/');
    await page.keyboard.type('no such title');
    await expectSeen(page.getByText('No session matches this filter'));
    await page.getByRole('searchbox').fill('RENAMED');
    await expectSeen(row);
    await page.getByLabel('Agent', { exact: true }).selectOption('Tester');
    await page.waitForURL(/view=archived&q=RENAMED&agent=agent_/);
    await expectSeen(row);
    await page.getByRole('button', { name: 'Needs you' }).click();
    await expectSeen(page.getByText('No session matches this filter'));
    await page.goBack();
    await expectSeen(row);
    await page.reload();
    await expectSeen(row);
    await expect(page.getByRole('searchbox').inputValue()).resolves.toBe('RENAMED');
  });

  it('show status', async () => {
    await page.goto('/status');
    await expectSeen(page.getByText('All services report'));
    for (const name of ['gateway-api', 'sandbox', 'session'])
      await expectSeen(page.getByRole('listitem').filter({ hasText: name }));
    await picture('status');
  });

  it('are as dark as they were chosen to be', async () => {
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await paper();
    await page.getByRole('button', { name: 'Appearance' }).click();
    await page.getByRole('menuitemradio', { name: 'Dark' }).click();
    expect(await paper()).not.toBe(light);
    await page.reload();
    expect(await paper()).not.toBe(light);
    await picture('status-dark');
    await page.getByRole('button', { name: 'Appearance' }).click();
    await page.getByRole('menuitemradio', { name: 'As the system' }).click();
    expect(await paper()).toBe(light);
  });

  it('fit a phone, and are reached from its menu', async () => {
    await page.setViewportSize(PHONE);
    const agent = await page.request.get('/api/v1/agents');
    const { data } = (await agent.json()) as { data: { id: string }[] };
    for (const place of [
      '/sessions',
      '/agents',
      '/agents/new',
      `/agents/${data[0]?.id}`,
      '/environments',
      '/sandboxes',
      '/sandboxes/sbx_stuck',
      '/keys',
    ]) {
      await page.goto(place);
      await expectSeen(page.getByRole('heading', { level: 1 }));
      const [wanted, given] = await page
        .getByRole('main')
        .evaluate((main) => [main.scrollWidth, Math.min(main.clientWidth, innerWidth)]);
      expect([place, wanted]).toEqual([place, given]);
      await picture(`phone${place.replaceAll('/', '-')}`);
    }
    await page.getByRole('button', { name: 'Menu' }).click();
    await page.getByRole('menuitem', { name: 'Status' }).click();
    await page.waitForURL('**/status');
    await page.setViewportSize(DESKTOP);
  });

  it('show without a mouse what a mouse would uncover', async () => {
    const session = await new TestClient(platform).json<{ data: { id: string }[] }>(
      '/v1/sessions?x_text=Renamed&include_archived=true',
    );
    const touch = await browser.newContext({
      ...{ viewport: PHONE, hasTouch: true, isMobile: true, baseURL: platform.dashboardUrl },
      storageState: await context.storageState(),
    });
    const phone = await touch.newPage();
    await phone.goto(`/sessions/${session.data[0]?.id}`);
    const fork = phone.getByRole('button', { name: 'Fork from this message' }).last();
    await expectSeen(fork);
    await expect(fork.evaluate((button) => getComputedStyle(button).opacity)).resolves.toBe('1');
    await touch.close();
  });

  it('make keys, show them once, and end their sign-ins when they are revoked', async () => {
    await page.goto('/keys');
    await page.getByRole('button', { name: 'New key' }).click();
    await page.getByLabel('Name', { exact: true }).fill('second');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    const key = (await page.getByText(/^hf_[\w-]{20,}$/).textContent())?.trim() ?? '';
    await picture('key');
    await page.getByRole('button', { name: 'Done' }).click();
    expect(await page.content()).not.toContain(key);
    const other = await (await browser.newContext({ baseURL: platform.dashboardUrl })).newPage();
    await other.goto('/sign-in');
    await other.getByLabel('API key', { exact: true }).fill(key);
    await other.keyboard.press('Enter');
    await expectSeen(other.getByRole('heading', { name: 'Sessions' }));
    const row = page.getByRole('listitem').filter({ hasText: 'second' });
    await row.getByRole('button', { name: 'Revoke' }).click();
    await page.getByRole('alertdialog').getByRole('button', { name: 'Revoke' }).click();
    await expectSeen(row.getByText('Revoked'));
    await other.waitForURL(/sign-in\?next=/);
    await other.context().close();
  });

  it('sign out', async () => {
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.waitForURL('**/sign-in');
    await page.goto('/sessions');
    expect(new URL(page.url()).pathname).toBe('/sign-in');
  });

  it('start a session by the short form on this port, with a key, and say what is wrong with it', async () => {
    const agents = await fetch(`${platform.apiUrl}/v1/agents`, { headers: { 'x-api-key': platform.apiKey } });
    const agent = ((await agents.json()) as { data: { id: string }[] }).data[0]?.id;
    const start = async (body: string, headers: Record<string, string>) => {
      const answer = await fetch(`${platform.dashboardUrl}/api/sessions`, { method: 'POST', headers, body });
      return [answer.status, await answer.json()] as [number, { id: string; error: { message: string } }];
    };
    const key = { authorization: `Bearer ${platform.apiKey}`, 'content-type': 'application/json' };
    const [status, made] = await start(JSON.stringify({ agent_id: agent }), key);
    expect([status, made]).toMatchObject([200, { type: 'session', status: 'idle' }]);
    for (const [body, headers, refused] of [
      ['{}', key, [400, { error: { message: expect.stringContaining('agent_id') } }]],
      ['{', key, [400, { error: { type: 'invalid_request_error' } }]],
      ['{"agent_id":"agent_none"}', key, [404, { error: { type: 'not_found_error' } }]],
      ['{}', { 'x-api-key': 'hf_wrong' }, [401, { error: { type: 'authentication_error' } }]],
      ['{}', {}, [401, { error: { message: expect.stringContaining('API key') } }]],
    ] as const)
      expect(await start(body, headers)).toMatchObject(refused);
    const elsewhere = await fetch(`${platform.dashboardUrl}/api/elsewhere`, { method: 'PUT', headers: key });
    expect([elsewhere.status, await elsewhere.json()]).toMatchObject([404, { error: { type: 'not_found_error' } }]);
    // A session that says nothing yet opens its stream all the same.
    const stream = await fetch(`${platform.dashboardUrl}/api/v1/sessions/${made.id}/events/stream`, {
      headers: key,
      signal: AbortSignal.timeout(5_000),
    });
    expect(stream.headers.get('content-type')).toMatch('text/event-stream');
    await stream.body?.cancel();
  });

  it('had no fault in the browser', () => {
    expect(faults).toEqual([]);
  });
});
