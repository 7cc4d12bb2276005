import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { launchChromium, startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { Browser, BrowserContext, Locator, Page } from 'playwright-core';

/** Where to leave pictures of every page, for people to look at. */
const PICTURES = process.env.HOLDFAST_PICTURES;

let platform: TestPlatform;
let browser: Browser;
let context: BrowserContext;
let page: Page;
const faults: string[] = [];

beforeAll(async () => {
  platform = await startPlatform();
  browser = await launchChromium();
  context = await browser.newContext({ viewport: { width: 1280, height: 800 }, baseURL: platform.dashboardUrl });
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
}, 60_000);

async function picture(name: string): Promise<void> {
  if (PICTURES === undefined) return;
  mkdirSync(PICTURES, { recursive: true });
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}
async function say(text: string): Promise<void> {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}
const log = () => page.getByRole('log');
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
    const page403 = await context.request.get('/agents', { headers: { host: 'evil.example' } });
    expect(page403.status()).toBe(403);
    const policy = (await context.request.get('/agents')).headers()['content-security-policy'] ?? '';
    expect(policy).toMatch(/script-src 'self' 'nonce-\w+' 'strict-dynamic'/);
    expect(policy).toContain("img-src 'self' data:");
  });
});

describe('agents', () => {
  it('are created, changed in versions, and looked at as they were', async () => {
    await page.goto('/agents/new');
    await page.getByLabel('Name', { exact: true }).fill('Tester');
    await expectSeen(page.getByLabel('Model', { exact: true }));
    await page.locator('option', { hasText: 'demo' }).waitFor({ state: 'attached' });
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
    await page.getByRole('button', { name: /^v1/ }).click();
    await expectSeen(page.getByText('This is version 1.'));
    await expect(page.getByLabel('Instructions', { exact: true }).inputValue()).resolves.toBe('Be brief.');
    await picture('agent');
  });
});

describe('a chat', () => {
  it('runs a tool after it was allowed, and shows its output folded', async () => {
    await page.goto('/sessions');
    await expectSeen(page.getByText('No sessions yet'));
    await picture('sessions-empty');
    await page.getByRole('button', { name: 'Start a session' }).first().click();
    await page.getByLabel('First message').fill('RUN[echo from the $((40+2))th sandbox]');
    await picture('start');
    await page.getByRole('button', { name: 'Start', exact: true }).click();
    await page.waitForURL('**/sessions/sesn_*');
    await expectSeen(page.getByText('Allow this call?'));
    await picture('chat-approval');
    await page.getByRole('button', { name: 'Allow', exact: true }).click();
    await expectSeen(page.getByLabel('done'));
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
    const id = page.url().split('/').pop() ?? '';
    const list = await fetch(`${platform.apiUrl}/v1/sessions/${id}/events?types[]=agent.message`, {
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
    await page.getByRole('button', { name: 'Interrupt' }).click();
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

  it('has a timeline with every event of the log', async () => {
    await page.getByRole('link', { name: 'Timeline' }).click();
    await expectSeen(page.getByText('session.created', { exact: true }).first());
    await page.getByText('agent.tool_result').first().click();
    await page.getByLabel('Filter by type').fill('tool');
    await expectGone(page.getByText('session.created', { exact: true }).first());
    await picture('timeline');
    await page.getByRole('link', { name: 'Chat' }).click();
  });

  it('is archived', async () => {
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Archive' }).click();
    await page.getByRole('button', { name: 'Archive' }).click();
    await expectSeen(page.getByText('takes no more messages').first());
  });
});

describe('the other pages', () => {
  it('list sessions with their status', async () => {
    await page.goto('/sessions');
    await expectSeen(page.getByText('No sessions yet'));
    await page.getByRole('button', { name: 'With archived' }).click();
    await expectSeen(page.getByText('Archived', { exact: true }));
    await picture('sessions');
  });

  it('show status', async () => {
    await page.goto('/status');
    await expectSeen(page.getByRole('cell', { name: 'session', exact: true }).first());
    await picture('status');
    await page.emulateMedia({ colorScheme: 'dark' });
    await picture('status-dark');
    await page.setViewportSize({ width: 390, height: 800 });
    await page.goto('/agents');
    await expectSeen(page.getByText('Tester'));
    await picture('agents-dark-phone');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize({ width: 1280, height: 800 });
  });

  it('make environments', async () => {
    await page.goto('/environments');
    await page.getByRole('button', { name: 'New environment' }).click();
    await page.getByLabel('Name', { exact: true }).fill('offline');
    await page.getByLabel('Allowed hosts').fill('example.com\n*.example.org');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByText('example.com, *.example.org'));
    await picture('environments');
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
    await page.getByRole('dialog').getByRole('button', { name: 'Revoke' }).click();
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

  it('start a session by the short form on this port, with a key', async () => {
    const agents = await fetch(`${platform.apiUrl}/v1/agents`, { headers: { 'x-api-key': platform.apiKey } });
    const agent = ((await agents.json()) as { data: { id: string }[] }).data[0]?.id;
    const made = await fetch(`${platform.dashboardUrl}/api/sessions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${platform.apiKey}`, 'content-type': 'application/json' },
      body: JSON.stringify({ agent_id: agent, prompt: 'hello' }),
    });
    expect(await made.json()).toMatchObject({ type: 'session' });
  });

  it('had no fault in the browser', () => {
    expect(faults).toEqual([]);
  });
});
