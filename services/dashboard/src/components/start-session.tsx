'use client';
import { type Agent, type Environment, newId, type Session } from '@holdfast/contracts';
import { useMutation } from '@tanstack/react-query';
import { Bot } from 'lucide-react';
import Link from 'next/link';
import { useRouter } from 'next/navigation';
import { useRef, useState } from 'react';
import { apiPersistent, messageOf } from '../lib/api.ts';
import { engineOf } from '../lib/format.ts';
import { useWholeList } from './paged.tsx';
import { Button, buttonClass, Empty, Failure, Field, FormError, Loading, Modal, Select, TextArea } from './ui.tsx';

const TITLE_CHARS = 80;

export function StartSession(props: { open: boolean; onClose: () => void; agentId?: string }) {
  return (
    <Modal open={props.open} onClose={props.onClose} title="New session">
      <StartForm {...(props.agentId === undefined ? {} : { agentId: props.agentId })} />
    </Modal>
  );
}

function StartForm(props: { agentId?: string }) {
  const router = useRouter();
  const agents = useWholeList<Agent>(['agents', 'pick'], '/v1/agents?limit=100');
  const environments = useWholeList<Environment>(['environments', 'pick'], '/v1/environments?limit=100');
  const [agentId, setAgentId] = useState(props.agentId ?? '');
  const [environmentId, setEnvironmentId] = useState('');
  const [prompt, setPrompt] = useState('');
  const asked = useRef({ body: '', key: '' });
  const chosenAgent = (agents.items.find(({ id }) => id === agentId) ?? agents.items[0])?.id ?? '';
  const start = useMutation({
    mutationFn: () => {
      const title = prompt.trim().split('\n')[0]?.slice(0, TITLE_CHARS) ?? '';
      const body = {
        agent_id: chosenAgent,
        ...(title === '' ? {} : { prompt, title }),
        ...(environmentId === '' ? {} : { environment_id: environmentId }),
      };
      // The same asked again, after an answer that was lost, is started once.
      if (asked.current.body !== JSON.stringify(body))
        asked.current = { body: JSON.stringify(body), key: newId('command') };
      return apiPersistent<Session>('/sessions', body, asked.current.key);
    },
    onSuccess: (session) => router.push(`/sessions/${session.id}`),
  });
  if (agents.isPending || agents.hasNextPage) return <Loading rows={3} />;
  if (agents.isError && agents.items.length === 0)
    return <Failure error={agents.error} onRetry={() => void agents.refetch()} />;
  if (agents.items.length === 0) {
    return (
      <Empty icon={<Bot />} title="There is no agent yet">
        <p>A session runs an agent: a model with instructions and tools.</p>
        <Link className={buttonClass('primary')} href="/agents/new">
          Create the first agent
        </Link>
      </Empty>
    );
  }
  return (
    <form
      className="space-y-4"
      onSubmit={(event) => {
        event.preventDefault();
        start.mutate();
      }}
    >
      <div className="grid grid-cols-1 gap-4 sm:grid-cols-2">
        <Field label="Agent">
          <Select value={chosenAgent} onChange={(event) => setAgentId(event.target.value)} required>
            {agents.items.map((agent) => (
              <option key={agent.id} value={agent.id}>
                {agent.name} · {engineOf(agent)}
              </option>
            ))}
          </Select>
        </Field>
        <Field label="Environment">
          <Select value={environmentId} onChange={(event) => setEnvironmentId(event.target.value)}>
            <option value="">default</option>
            {environments.items
              .filter((environment) => environment.name !== 'default')
              .map((environment) => (
                <option key={environment.id} value={environment.id}>
                  {environment.name}
                </option>
              ))}
          </Select>
        </Field>
      </div>
      <Field label="First message" hint="Leave it empty to write it in the chat. Ctrl and Enter starts.">
        <TextArea
          rows={5}
          value={prompt}
          onChange={(event) => setPrompt(event.target.value)}
          onKeyDown={(event) => {
            if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.currentTarget.form?.requestSubmit();
          }}
        />
      </Field>
      {start.isError ? <FormError text={messageOf(start.error)} /> : null}
      <div className="flex justify-end">
        <Button look="primary" type="submit" busy={start.isPending} disabled={chosenAgent === ''}>
          Start
        </Button>
      </div>
    </form>
  );
}
