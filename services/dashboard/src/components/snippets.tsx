import { Tabs } from 'radix-ui';
import { CopyButton, Verbatim } from './ui.tsx';

export interface Snippet {
  readonly name: string;
  readonly text: string;
}

/** The same thing in several languages. */
export function Snippets({ snippets }: { snippets: readonly Snippet[] }) {
  return (
    <Tabs.Root defaultValue={snippets[0]?.name ?? ''}>
      <Tabs.List aria-label="Language" className="flex w-fit gap-0.5 rounded-lg bg-raised p-0.5">
        {snippets.map(({ name }) => (
          <Tabs.Trigger
            key={name}
            value={name}
            className="h-7 rounded-md px-3 text-xs text-soft hover:text-ink data-[state=active]:bg-panel data-[state=active]:font-medium data-[state=active]:text-ink data-[state=active]:shadow-xs"
          >
            {name}
          </Tabs.Trigger>
        ))}
      </Tabs.List>
      {snippets.map(({ name, text }) => (
        <Tabs.Content key={name} value={name} className="relative mt-2">
          <Verbatim className="overflow-x-auto rounded-lg bg-raised p-3 pr-10 font-mono text-xs leading-relaxed">
            {text}
          </Verbatim>
          <CopyButton text={text} label={`Copy the ${name} example`} className="absolute top-2 right-2 bg-raised" />
        </Tabs.Content>
      ))}
    </Tabs.Root>
  );
}

// The dashboard's own port speaks the API too, below /api: the one address that is known here to be reachable.
const apiUrl = (): string => `${location.origin}/api`;

/** A session of an agent, with its first message. */
export function startSnippets(agentId: string): Snippet[] {
  return [
    {
      name: 'curl',
      text: `curl -sS ${apiUrl()}/sessions \\
  -H "x-api-key: $HOLDFAST_API_KEY" -H "content-type: application/json" \\
  -d '{"agent_id": "${agentId}", "prompt": "Hello"}'`,
    },
    {
      name: 'TypeScript',
      text: `import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ apiKey: process.env.HOLDFAST_API_KEY, baseURL: '${apiUrl()}' });
const { data } = await client.beta.environments.list();
const session = await client.beta.sessions.create({
  agent: '${agentId}',
  environment_id: data.find(({ name }) => name === 'default').id,
  initial_events: [{ type: 'user.message', content: [{ type: 'text', text: 'Hello' }] }],
});
console.log(session.id);`,
    },
    {
      name: 'Python',
      text: `import os
from anthropic import Anthropic

client = Anthropic(api_key=os.environ["HOLDFAST_API_KEY"], base_url="${apiUrl()}")
default = next(env for env in client.beta.environments.list() if env.name == "default")
session = client.beta.sessions.create(
    agent="${agentId}",
    environment_id=default.id,
    initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Hello"}]}],
)
print(session.id)`,
    },
  ];
}

/** A message to a session, and what comes of it. */
export function sessionSnippets(sessionId: string): Snippet[] {
  return [
    {
      name: 'curl',
      text: `# Send a message
curl -sS ${apiUrl()}/v1/sessions/${sessionId}/events \\
  -H "x-api-key: $HOLDFAST_API_KEY" -H "content-type: application/json" \\
  -d '{"events": [{"type": "user.message", "content": [{"type": "text", "text": "Hello"}]}]}'

# Follow it, from its first event on; resume with after=<the last id>
curl -sSN "${apiUrl()}/v1/sessions/${sessionId}/events/stream?after=0" \\
  -H "x-api-key: $HOLDFAST_API_KEY"`,
    },
    {
      name: 'TypeScript',
      text: `import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ apiKey: process.env.HOLDFAST_API_KEY, baseURL: '${apiUrl()}' });
const events = await client.beta.sessions.events.stream('${sessionId}');
await client.beta.sessions.events.send('${sessionId}', {
  events: [{ type: 'user.message', content: [{ type: 'text', text: 'Hello' }] }],
});
for await (const event of events) {
  if (event.type === 'agent.message') console.log(event.content);
  if (event.type === 'session.status_idle') break;
}`,
    },
    {
      name: 'Python',
      text: `import os
from anthropic import Anthropic

client = Anthropic(api_key=os.environ["HOLDFAST_API_KEY"], base_url="${apiUrl()}")
with client.beta.sessions.events.stream("${sessionId}") as events:
    client.beta.sessions.events.send(
        "${sessionId}",
        events=[{"type": "user.message", "content": [{"type": "text", "text": "Hello"}]}],
    )
    for event in events:
        if event.type == "agent.message":
            print(event.content)
        if event.type == "session.status_idle":
            break`,
    },
  ];
}

/** An environment's worker. */
export function workerSnippets(environmentId: string): Snippet[] {
  return [
    {
      name: 'TypeScript',
      text: `import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ apiKey: 'unused', baseURL: '${apiUrl()}' });
await client.beta.environments.work
  .worker({
    environmentId: '${environmentId}',
    environmentKey: process.env.ENVIRONMENT_KEY,
    workdir: '/workspace',
  })
  .run();`,
    },
    {
      name: 'Python',
      text: `import asyncio, os
from anthropic import AsyncAnthropic

client = AsyncAnthropic(api_key="unused", base_url="${apiUrl()}")
worker = client.beta.environments.work.worker(
    environment_id="${environmentId}",
    environment_key=os.environ["ENVIRONMENT_KEY"],
    workdir="/workspace",
)
asyncio.run(worker.run())`,
    },
  ];
}
