'use client';
import { useQuery } from '@tanstack/react-query';
import { Activity, Bot, KeyRound, LogOut, MessagesSquare, Server } from 'lucide-react';
import Link from 'next/link';
import { usePathname } from 'next/navigation';
import type { ReactNode } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import type { PlatformStatus } from './status-page.tsx';
import { cn } from './ui.tsx';

const PLACES = [
  { href: '/sessions', text: 'Sessions', icon: MessagesSquare },
  { href: '/agents', text: 'Agents', icon: Bot },
  { href: '/environments', text: 'Environments', icon: Server },
  { href: '/keys', text: 'API keys', icon: KeyRound },
  { href: '/status', text: 'Status', icon: Activity },
];

export function Shell({ children }: { children: ReactNode }) {
  const path = usePathname();
  const status = useQuery({
    queryKey: ['status'],
    queryFn: ({ signal }) => api<PlatformStatus>('/v1/x/status', { signal }),
    refetchInterval: 15_000,
  });
  const signOut = async () => {
    try {
      await api('/sign-out', { method: 'POST' });
      location.assign('/sign-in');
    } catch (error) {
      toast.error(messageOf(error));
    }
  };
  return (
    <div className="flex h-dvh flex-col md:flex-row">
      <a
        href="#content"
        className="sr-only focus:not-sr-only focus:absolute focus:z-50 focus:m-2 focus:rounded-lg focus:bg-panel focus:p-2"
      >
        Skip to the content
      </a>
      <nav
        aria-label="Main"
        className="flex shrink-0 items-center gap-1 overflow-x-auto border-b bg-panel p-2 md:h-dvh md:w-52 md:flex-col md:items-stretch md:border-r md:border-b-0 md:p-3"
      >
        <Link
          href="/sessions"
          className="flex items-center gap-2 px-2 py-1 font-semibold tracking-tight md:mb-3 md:py-2"
        >
          <Mark /> <span className="hidden sm:inline">Holdfast</span>
        </Link>
        {PLACES.map(({ href, text, icon: Icon }) => {
          const here = path === href || path.startsWith(`${href}/`);
          return (
            <Link
              key={href}
              href={href}
              {...(here ? { 'aria-current': 'page' as const } : {})}
              className={cn(
                'flex items-center gap-2.5 rounded-lg px-2.5 py-1.5 text-sm whitespace-nowrap text-soft hover:bg-raised hover:text-ink',
                here && 'bg-accent-soft font-medium text-accent hover:bg-accent-soft hover:text-accent',
              )}
            >
              <Icon className="size-4" aria-hidden /> {text}
            </Link>
          );
        })}
        <button
          type="button"
          onClick={() => void signOut()}
          className="ml-auto flex items-center gap-2.5 rounded-lg px-2.5 py-1.5 text-sm whitespace-nowrap text-soft hover:bg-raised hover:text-ink md:mt-auto md:ml-0"
        >
          <LogOut className="size-4" aria-hidden /> Sign out
        </button>
      </nav>
      <main id="content" className="flex min-h-0 min-w-0 flex-1 flex-col overflow-y-auto">
        {status.data?.demo_gateway === true ? (
          <p role="status" className="shrink-0 border-b bg-warn-soft px-4 py-2 text-sm text-warn">
            These answers come from the <strong>demo gateway</strong>, a script and not a model. Set{' '}
            <code className="font-mono">LITELLM_GATEWAY_URL</code> and{' '}
            <code className="font-mono">LITELLM_API_KEY</code> in <code className="font-mono">.env</code> to use your
            models.
          </p>
        ) : null}
        {children}
      </main>
    </div>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" className="size-6" aria-hidden="true">
      <rect width="32" height="32" rx="8" className="fill-accent" />
      <path d="M11 8v16M21 8v16M11 16h10" className="stroke-accent-ink" strokeWidth="3.2" strokeLinecap="round" />
    </svg>
  );
}
